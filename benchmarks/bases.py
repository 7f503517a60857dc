"""Bases compared: the value of their images without and with fine-tuning, on validation, and the verdict of the gate.

One choice of 5 real images per class of the demo's set; fine-tuning, sampling and training as in `few_shot.py`, limits of params.yaml
but for that of the coverage of single classes, which is the default.

    python benchmarks/bases.py --out FOLDER NAME=BASE NAME=BASE   # BASE: demo://glyphs or a directory
"""

import argparse
from pathlib import Path

import numpy as np
from few_shot import Bench

from gda.artifacts.document import read_document
from gda.artifacts.verdict import Measure, Verdict
from gda.config.sections import ValidateConfig

SHOTS, CHOICE = 5, 0
COVERAGE = ValidateConfig.model_fields["min_class_coverage_ratio"].default
COLUMNS = ("Base", "Images", "CAS", "Mixed with real", "FID, in floors", "Worst class covered", "Labels confirmed", "Verdict")


def floors(measure: Measure) -> str:
    """A measure in multiples of real against real, with its 95% interval."""
    value, floor, low, high = measure.value, measure.floor, measure.low, measure.high
    if value is None or floor is None:
        return "not measured"
    ends = "" if low is None or high is None else f" ({low / floor:.1f} to {high / floor:.1f})"
    return f"{value / floor:.1f}{ends}"


def assess(bench: Bench, chosen: Path, images: Path, generator: str, name: str) -> Verdict:
    """The verdict on `images`."""
    out = chosen / f"verdict-{name}"
    command = ("validate", "--synthetic", str(images), "--snapshot", str(chosen / "real"), "--generator", generator)
    places = ("--reference", str(chosen / "reference"), "--accepted", str(chosen / f"accepted-{name}"), "--out", str(out))
    bench.gda(*command, *places, validate__min_class_coverage_ratio=COVERAGE)
    return read_document(out / "verdict.json", Verdict)


def row(bench: Bench, name: str, base: str) -> None:
    """Measure a base and print its two lines."""
    chosen = bench.choose(SHOTS, CHOICE)
    bench.gda("reference", "--snapshot", str(chosen / "real"), "--out", str(chosen / "reference"))
    sets = {"not fine-tuned": (bench.base_images(chosen / "real"), base)}
    sets["fine-tuned"] = (bench.tuned_images(chosen), str(chosen / "generator"))
    for kind, (images, generator) in sets.items():
        verdict = assess(bench, chosen, images, generator, kind.replace(" ", "-"))
        alone, mixed = (bench.accuracies(chosen, arm, images, f"{kind}-{arm}") for arm in ("zero_shot", "real+zero_shot"))
        covered, labels = verdict.metrics["coverage_worst_class"], verdict.metrics["label_agreement"]
        outcome = "accepted" if verdict.passed else "refused: " + " ".join(verdict.reasons)
        cells = (f"{100 * np.mean(alone):.1f}", f"{100 * np.mean(mixed):.1f}", floors(verdict.metrics["fid"]))
        shares = (f"{100 * (covered.value or 0):.0f}% (class {covered.class_name})", f"{100 * (labels.value or 0):.0f}%")
        print(f"| {' | '.join((name, kind, *cells, *shares, outcome))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", metavar="NAME=BASE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for given in args.bases:
        name, _, base = given.partition("=")
        row(Bench(args.out.resolve() / name, base, None), name, base)


if __name__ == "__main__":
    main()
