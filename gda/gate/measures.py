"""From estimates to the measures of a verdict: with interval, floor and what they were measured with."""

from dataclasses import dataclass

import numpy as np

from gda.artifacts.verdict import Measure
from gda.fidelity.compare import Comparison
from gda.fidelity.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class MeasuredWith:
    """What a metric was measured with, where that is a matter of choice."""

    extractor: str | None = None
    reference_digest: str | None = None


def measure(value: float, *, n: int) -> Measure:
    """A count or a ratio over `n` images; null, which no gate passes, when it is not a finite number."""
    return Measure(value=finite(value), n=n)


def estimated(estimate: Estimate, *, n: int, floor: float | None = None, measured: MeasuredWith | None = None) -> Measure:
    """A measure with its interval over `n` images; numbers that are not finite are null, which no gate passes."""
    measured = measured or MeasuredWith()
    return Measure(
        value=finite(estimate.value),
        low=finite(estimate.low),
        high=finite(estimate.high),
        floor=finite(floor),
        n=n,
        extractor=measured.extractor,
        reference_digest=measured.reference_digest,
    )


def compared(result: Comparison, measured: MeasuredWith) -> Measure:
    """A measure with its interval, floor and what real images of one class score."""
    stated = estimated(result.estimate, n=result.n, floor=result.floor.value, measured=measured)
    one_class = None if result.one_class is None else finite(result.one_class.value)
    return stated.model_copy(update={"one_class": one_class})


def finite(value: float | None) -> float | None:
    """The value, or None for one that is not a finite number."""
    return None if value is None or not np.isfinite(value) else float(value)
