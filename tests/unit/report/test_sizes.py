"""What compare says of the worth of a synthetic image, in words."""

import pytest

from gda.artifacts.curves import Exchange, SizeComparison, SizePoint
from gda.config.sections import Arm
from gda.report.sizes import size_table


def line(**changes: object) -> str:
    fields = {"num_train": 400, "choices": 1, "seeds": 3, "real_top1": (0.7,), "top1": (0.8,), "gain": 0.1, "ci95": (0.05, 0.15)}
    point = SizePoint.model_validate(fields | changes)
    return size_table(SizeComparison(arm=Arm.MIXED, points=(point,), num_test=10, test_digest="t"))[1]


@pytest.mark.parametrize(
    ("rate", "low", "high", "expected"),
    [
        (0.31, 0.0, 0.9, "about 0.31 real ones (between 0 and 0.9)"),
        (-0.2, -0.3, 0.0, "about −0.2 real ones (between −0.3 and 0)"),
        (0.31, 0.1, None, "about 0.31 real ones (more than 0.1)"),
        (None, 1.2, None, "more than 1.2 real ones"),
        (None, None, 0.0, "less than 0 real ones"),
        (None, None, None, "not determined by these sizes"),
        (0.31, None, None, "not determined by these sizes"),
    ],
)
def test_a_rate_is_stated_no_more_precisely_than_it_is_known(
    rate: float | None, low: float | None, high: float | None, expected: str
) -> None:
    """Protects readers from a number without its ends, and from an end that was not measured; an end of 0 is an end."""
    assert line(exchange=Exchange(rate=rate, low=low, high=high, num_synthetic=1000)).endswith("+5.0 to +15.0     " + expected)


def test_a_missing_rate_differs_from_one_that_was_not_computed() -> None:
    """Protects the column: with fewer than three sizes it is empty, otherwise it reads “not stated”."""
    assert line().endswith("+15.0")
    assert line(unpriced="real-only accuracy falls").endswith("not stated")
