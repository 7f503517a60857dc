"""Figures of a finished `make demo`: seconds per stage, peak memory, sizes. Run it in the folder where the job ran.

python benchmarks/demo.py
"""

import json
import platform
from pathlib import Path


def main() -> None:
    steps = [json.loads(path.read_text()) for path in Path(".gda/timings").glob("*.json")]
    totals: dict[str, tuple[float, float]] = {}
    for step in steps:
        name = step["stage"] if step["stage"] == "classify" else f"{step['stage']} {step['output']}"
        seconds, peak = totals.get(name, (0.0, 0.0))
        totals[name] = (seconds + step["seconds"], max(peak, step["peak_mib"]))
    print(f"| step ({platform.machine()}, {platform.system()}) | seconds | peak MiB |")
    print("|---|---|---|")
    for name, (seconds, peak) in sorted(totals.items(), key=lambda item: -item[1][0]):
        print(f"| {name} | {seconds:.1f} | {peak:.0f} |")
    print(f"| all | {sum(s for s, _ in totals.values()):.1f} | {max(p for _, p in totals.values()):.0f} |")


if __name__ == "__main__":
    main()
