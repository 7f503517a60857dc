"""The report's table of what synthetic images do in each training."""

from dataclasses import dataclass

from gda.artifacts.evaluation import GainWithinTraining, Metrics
from gda.config.arm import Arm, place
from gda.config.sections import PromoteConfig
from gda.report.sentences import paired_accuracies
from gda.report.wording import count, gain_cells, has_all_seeds, p_value, percent
from gda.stats.gain import signs_of
from gda.stats.multiplicity.looks import fewest_flips

_FEWEST_LINES = 2  # a single comparison is shown elsewhere on the page
_MOST_NAMES = 3
# What else a line differs in, where its synthetic images are not those of all classes from beginning to end.
_DATA_NOTES = {"targeted": "synthetic images of hard classes", "last_layer": "head on real images at the end"}


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """A line: the training's name, what it trains, then accuracies, gain, p, p after correction, harmed classes, and the conclusion."""

    training: str
    notes: tuple[str, ...]
    cells: tuple[str, ...]
    verdict: str
    holds: bool


def training_rows(metrics: Metrics, promote: PromoteConfig) -> list[TrainingRow]:
    """A line for each arm that was compared with its own training on real images alone; none for fewer than two arms."""
    compared = metrics.gain_within_training
    if len(compared) < _FEWEST_LINES:
        return []
    return [_row(metrics, arm, compared[arm], promote) for arm in sorted(compared, key=_place)]


def _place(arm: Arm) -> tuple[int, str, int]:
    """Where a line stands: those of one training together."""
    data, training, name = place(arm)
    return training, name, data


def _row(metrics: Metrics, arm: Arm, compared: GainWithinTraining, promote: PromoteConfig) -> TrainingRow:
    before, after = paired_accuracies(metrics, arm, compared.rival, compared.gain)
    gain, p = gain_cells(metrics, compared.gain)
    shown = has_all_seeds(metrics, compared.gain)
    why_not = _why_not(metrics, compared, promote)
    return TrainingRow(
        training=arm.training or "standard",
        notes=(compared.model, *([_DATA_NOTES[arm.data.name]] if arm.data.name in _DATA_NOTES else [])),
        cells=(
            percent(before),
            percent(after),
            gain,
            _bare(p),
            _bare(p_value(compared.p_holm)) if shown else "–",
            _harmed(compared) if shown else "–",
        ),
        verdict=why_not or "holds",
        holds=not why_not,
    )


def _bare(p: str) -> str:
    return p.removeprefix("p = ").removeprefix("p ")


def _harmed(compared: GainWithinTraining) -> str:
    names = [harm.class_name for harm in compared.gain.harmed_classes]
    if not names:
        return "none"
    return f"{len(names):,}" + (f": {', '.join(names)}" if len(names) <= _MOST_NAMES else "")


def _why_not(metrics: Metrics, compared: GainWithinTraining, promote: PromoteConfig) -> str:
    """In a few words, the first reason why a gain does not hold; empty where it does."""
    gain = compared.gain
    low, high = gain.ci95
    if not has_all_seeds(metrics, gain):
        return "too few seeds to say"
    if not gain.seeds >= promote.min_seeds:
        return f"fewer than {count(promote.min_seeds, 'seed')}"
    if not low > 0:
        return "likely worse" if high < 0 else "no clear gain"
    if not compared.p_holm <= promote.alpha:
        return _p_too_large(metrics, compared, promote.alpha)
    return f"harms {_classes(len(gain.harmed_classes))}" if gain.harmed_classes else ""


def _p_too_large(metrics: Metrics, compared: GainWithinTraining, alpha: float) -> str:
    """States how many seeds are needed where, among so many lines, no gain of any size could have passed."""
    have, what = signs_of(compared.gain)
    needed = fewest_flips(alpha / len(metrics.gain_within_training))
    return f"{needed} {what} needed" if have < needed else "p too large"


def _classes(n: int) -> str:
    return "a class" if n == 1 else f"{n:,} classes"
