"""How a sweep is shown: points in words by what differs, the best ones first, plots that stay readable and repeat to the byte."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from gda.artifacts.tuning import SamplingSettings, Settings, TuningPoint
from gda.report.tuning import SHOWN_POINTS, _scale_fid, describe_point, guidance_figure, pareto_figure, tuning_pictures, tuning_rows


def point(guidance: float, fid: float | None, cas: tuple[float, ...] = (), *, average: float | None = None, **more: object) -> TuningPoint:
    sampling = {name: value for name, value in more.items() if name in SamplingSettings.model_fields}
    rest = {name: value for name, value in more.items() if name not in sampling}
    if fid is not None:
        rest = {"fid_ci95": (fid - 1, fid + 1)} | rest
    return TuningPoint.model_validate(
        {
            "settings": {"guidance_scale": guidance} | sampling,
            "ema_sigma_rel": average,
            "nfe": 20,
            "fid": fid,
            "cas": sum(cas) / len(cas) if cas else None,
            "cas_by_seed": cas,
        }
        | rest
    )


def sweep(*points: TuningPoint, chosen: int = 0, **more: object) -> Settings:
    return Settings.model_validate(
        {
            "chosen": points[chosen].settings,
            "ema_sigma_rel": points[chosen].ema_sigma_rel,
            "points": points,
            "extractor": "glyph",
            "fid_floor": 1.0,
            "num_images": 100,
            "generator_digest": "9" * 64,
            "snapshot_digest": "1" * 64,
        }
        | more
    )


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ((point(1.5, 5.0), point(2.0, 6.0)), "guidance 1.5"),
        ((point(1.5, 5.0, num_inference_steps=16), point(1.5, 6.0, num_inference_steps=1)), "guidance 1.5, 16 steps"),
        ((point(1.5, 5.0, guidance_interval=(0.2, 0.8)), point(2.0, 6.0)), "guidance 1.5, guided from 0.2 to 0.8"),
        ((point(1.5, 5.0), point(2.0, 6.0, guidance_interval=(0.2, 0.8))), "guidance 1.5, guided throughout"),
        ((point(1.0, 5.0), point(2.0, 6.0, guidance_interval=(0.2, 0.8)), point(2.0, 6.0)), "guidance 1"),
        ((point(1.5, 5.0, log_variance_mix=0.3), point(1.5, 6.0)), "guidance 1.5, log-variance mix 0.3"),
        ((point(1.5, 5.0), point(1.5, 6.0, log_variance_mix=0.3)), "guidance 1.5, the model's variance"),
        ((point(1.5, 5.0, average=0.05), point(1.5, 6.0)), "guidance 1.5, weights averaged at 0.05"),
        ((point(1.5, 5.0, sr_guidance_scale=5.0, sr_noise_level=10), point(1.5, 6.0)), "guidance 1.5, SR guidance 5, SR noise level 10"),
        ((point(1.5, 5.0, sr_num_inference_steps=1), point(1.5, 6.0)), "guidance 1.5, SR 1 step"),
    ],
)
def test_a_point_is_named_by_what_differs(points: tuple[TuningPoint, ...], expected: str) -> None:
    """Protects the reader from settings that are the same everywhere."""
    assert describe_point(points[0], points) == expected


def test_the_table_starts_with_the_chosen_and_says_what_failed() -> None:
    """Protects the order: chosen, other survivors by CAS, the rest by FID, failures last with their reason."""
    points = (
        point(1.0, 9.0),
        point(2.0, 4.0, (0.90, 0.92), pareto=True),
        point(3.0, None, failed="no such level"),
        point(4.0, 4.5, (0.95, 0.95)),
        point(5.0, 5.5, (0.85, 0.85)),
        point(6.0, 7.0),
    )
    rows = tuning_rows(sweep(*points, chosen=1))
    assert [row.setting for row in rows] == [f"guidance {g}" for g in (2, 4, 5, 6, 1, 3)]
    assert rows[0].marks == ("chosen", "undominated", "alike")
    assert (rows[0].fid, rows[0].cas, rows[0].nfe) == ("4 (3 to 5)", "91.0% (90.0, 92.0)", "20")
    assert rows[1].marks == ("alike",)
    assert rows[3].marks == ()
    assert rows[-1].fid == "failed: no such level"


def test_a_large_table_is_cut() -> None:
    """Protects the page of a sweep over hundreds of points: the best are shown, and plots are no larger for it."""
    many = tuple(
        point(1.0 + g / 10, 5.0 + g + steps, (0.9,) if g == steps == 1 else (), num_inference_steps=steps)
        for g in range(10)
        for steps in range(1, 21)
    )
    settings = sweep(*many, chosen=20)
    assert len(tuning_rows(settings)) == SHOWN_POINTS
    assert tuning_rows(settings)[0].marks[0] == "chosen"
    height = Image.open(io.BytesIO(guidance_figure(settings))).size[1]
    assert height < 1.5 * Image.open(io.BytesIO(guidance_figure(sweep(*many[:20])))).size[1]


def colours(png: bytes) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).copy().view("<u4")
    return {tuple(int(colour).to_bytes(4, "little")[:3]) for colour in np.unique(pixels)}


def test_plots_show_lines_survivors_and_the_front() -> None:
    """Protects the plots: a line a setting, a panel of CAS where there is one, dots of the front filled; equal bytes again."""
    blue, vermilion, ring = (0, 114, 178), (213, 94, 0), (251, 188, 4)
    points = (
        point(1.5, 5.0, (0.9,), num_inference_steps=8, pareto=True),
        point(2.0, 6.0, num_inference_steps=8),
        point(1.5, 8.0),
        point(2.0, 9.0),
    )
    settings = sweep(*points)
    assert {blue, vermilion} <= colours(guidance_figure(settings))
    assert vermilion not in colours(guidance_figure(sweep(*points[:2])))
    assert {blue, ring} <= colours(pareto_figure(settings))
    assert blue not in colours(pareto_figure(sweep(*(p.model_copy(update={"pareto": False}) for p in points))))
    assert tuning_pictures(settings) == tuning_pictures(settings)
    tall, flat = (
        Image.open(io.BytesIO(guidance_figure(sweep(*some)))).size[1]
        for some in (points, [p.model_copy(update={"cas": None}) for p in points])
    )
    assert tall > flat + 200


def test_plots_take_whatever_a_sweep_may_hold() -> None:
    """Protects a sweep of one point, of guidance 1 alone, of points that failed, and of FIDs from nothing to thousands."""
    for points in (
        (point(1.0, 0.0, (0.5,), fid_ci95=(0.0, 0.1)),),
        (point(1.0, 5.0, num_inference_steps=4), point(1.0, 6.0, num_inference_steps=8)),
        (point(1.0, 5.0, (0.5,)), point(2.0, None, failed="x")),
        (point(1.0, 5.0, (0.5,)), point(100.0, 50_000.0, fid_ci95=(1.0, 1e5))),
    ):
        assert {name: png[:4] for name, png in tuning_pictures(sweep(*points)).items()} == {"fid": b"\x89PNG", "pareto": b"\x89PNG"}


def test_only_a_wide_range_is_plotted_in_powers_of_ten() -> None:
    """Protects the difference between good points next to a very bad one, and a FID of zero, which has no logarithm."""
    for fids, scale in (((5.0, 12.0), "linear"), ((5.0, 50.0), "log"), ((0.0, 50.0), "linear"), ((5.0, None), "linear")):
        axes = Figure().subplots()
        _scale_fid(axes, "y", [point(1.5, fid, failed=None) for fid in fids])
        assert axes.get_yscale() == scale
