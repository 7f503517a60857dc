"""Makes every process of a group fail when it writes, except the first."""

import os
import sys
from pathlib import Path
from typing import Any

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def only_the_first_writes(root: Path) -> None:
    """From now on this process fails where it changes anything under `root`, unless it is the first that torchrun started."""
    if os.environ["RANK"] == "0":
        return
    watched = str(root.resolve())

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if not (writes or event in _CHANGES) or not isinstance(arguments[0], str | os.PathLike):
            return
        if os.path.abspath(arguments[0]).startswith(watched):
            raise PermissionError(f"process {os.environ['RANK']}: {event} {arguments[0]}")

    sys.addaudithook(refuse)
