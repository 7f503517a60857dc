"""Rows 1 to 11, 24 and 26 of docs/reliability.md: kills, disks, processes, memory, MLflow."""

from control import Control

STATE: tuple[Control, ...] = (
    Control(
        row=3,
        what="a shard that replaces one of the same name",
        file="gda/io/publish.py",
        edits=(("        os.link(temporary, path)\n", "        os.replace(temporary, path)\n        return True\n"),),
        tests=("tests/unit/io/test_publish.py::test_commit_new_never_replaces",),
    ),
)  # fmt: skip
