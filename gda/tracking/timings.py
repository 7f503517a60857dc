"""Seconds and peak memory of each step, in a separate folder: no output holds a time, so that outputs stay comparable."""

import resource
import sys
from pathlib import Path

from gda.errors import DataError
from gda.io.atomic import shown_name, work_root, write_json
from gda.runtime.disks import storage_errors
from gda.runtime.reading import read_object


def write_timing(command: str, output: Path, seconds: float) -> None:
    """Record one step that did work, over an earlier record of the same step."""
    folder = _folder()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    kib = 1 if sys.platform == "linux" else 1024  # macOS counts bytes
    content = {"stage": command, "output": shown_name(output), "seconds": seconds, "peak_mib": peak / (1024 * kib)}
    write_json(folder / f"{command}-{shown_name(output)}.json", content)


def read_timings() -> dict[str, float]:
    """Seconds by step of the graph, in the order of their newest run; classifier runs of one arm are summed. Raises `DataError`."""
    totals: dict[str, float] = {}
    for path in sorted(_folder().glob("*.json"), key=lambda p: p.stat().st_mtime):
        content = read_object(path)
        stage, output, seconds = (content.get(name) for name in ("stage", "output", "seconds"))
        if not isinstance(stage, str) or not isinstance(output, str) or not isinstance(seconds, int | float):
            raise DataError(f"{path}: no record of a step's time; remove it")
        name = f"classify {output.rsplit('-', 1)[0]}" if stage == "classify" else stage
        if stage in ("sample", "tune") and "zero_shot" in output:
            name = f"{stage} zero-shot"
        totals[name] = totals.get(name, 0.0) + float(seconds)
    return totals


def _folder() -> Path:
    return work_root() / "timings"
