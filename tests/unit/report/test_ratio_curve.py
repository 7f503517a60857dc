"""The ratio search in words and as a plot."""

import io

import pytest
from PIL import Image

from gda.artifacts.curves import RatioCurve, RatioPoint
from gda.report.ratio import ratio_answer, ratio_figure


def curve(*, low: float = 0.01, **changes: object) -> RatioCurve:
    """A peak near one synthetic image to a real one."""
    points = [
        RatioPoint(
            ratio=ratio, num_images=round(200 * ratio), top1=top1, gain=top1[0] - 0.9, ci95=(top1[0] - 0.9 - 0.02 + low, top1[0] - 0.88)
        )
        for ratio, top1 in ((0.5, (0.92, 0.91)), (1.0, (0.93, 0.94, 0.92, 0.93)), (2.0, (0.91, 0.90)))
    ]
    fields = {
        "points": points,
        "real_top1": (0.9, 0.9, 0.9, 0.9),
        "peak": 0.93,
        "peak_ci95": (0.6, 1.7),
        "best": 1.0,
        "enough": 0.5,
        "num_real": 200,
        "num_val": 100,
        "num_train_steps": 10,
        "snapshot_digest": "1" * 64,
        "synthetic_digest": "2" * 64,
    }
    return RatioCurve.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            "the peak is at 0.93 synthetic images to a real one (0.6 to 1.7); 200 images gain +3.0 points (+2.0 to +5.0, 4 seeds); "
            "100 do about as well",
        ),
        ({"low": -0.05}, "(0.6 to 1.7); no ratio clearly helps: the best, 1, gains +3.0 points (−4.0 to +5.0, 4 seeds)"),
        ({"at_edge": "largest"}, "the largest ratio tried: more may be better"),
        ({"at_edge": "smallest"}, "the smallest ratio tried: fewer may be better"),
    ],
)
def test_the_answer_says_what_was_found(changes: dict[str, object], expected: str) -> None:
    """Protects the sentence that decides how many images are generated."""
    answer = ratio_answer(curve(**changes))
    assert expected in answer
    assert ("about as well" in answer) == ("low" not in changes)


def test_the_plot_shows_the_curve() -> None:
    """Protects the picture: equal curves give equal bytes, and another gain or peak another picture."""
    png = ratio_figure(curve())
    assert Image.open(io.BytesIO(png)).width > 600
    assert png == ratio_figure(curve())
    assert png != ratio_figure(curve(peak=1.5))
    assert png != ratio_figure(curve(low=-0.05))
