"""The grid of a sweep and the choice among its points: pure functions with answers known beforehand."""

import json

import pytest

from gda.artifacts.tuning import SamplingSettings, TuningPoint
from gda.config.sections import TuneConfig
from gda.errors import ConfigError, DataError
from gda.tuning.grid import GeneratorParts, choose_point, like_the_best, make_grid, nfe, pareto, standard_error, survivors

CASCADE = GeneratorParts(super_resolution=True, upscaler=False, averages=True)
ONE_STAGE = GeneratorParts(super_resolution=False, upscaler=False, averages=False)
UPSCALED = GeneratorParts(super_resolution=False, upscaler=True, averages=True)


def _grid(parts=CASCADE, **axes):
    return make_grid(TuneConfig.model_validate_json(json.dumps(axes)), parts)


def _point(guidance=1.0, fid=1.0, cas=(), nfe=10, **more):
    settings = SamplingSettings(guidance_scale=guidance)
    mean = sum(cas) / len(cas) if cas else None
    return TuningPoint(settings=settings, nfe=nfe, fid=fid, cas=mean, cas_by_seed=tuple(cas), **more)


def test_the_grid_of_the_paper_is_the_product_of_its_axes():
    """Every combination is one point, in an order that does not depend on how the axes were written."""
    axes = {"log_variance_mixes": [0, 0.2, 0.3, 0.4, 1], "num_inference_steps": [128, 500, 1000], "scheduler": "ddpm"}
    grid = _grid(guidance_scales=[1, 1.25, 1.5, 1.75, 2, 5], **axes)
    assert len(grid.points) == 6 * 5 * 3
    assert len(set(grid.points)) == 90
    assert grid == _grid(guidance_scales=[5, 1.5, 1.25, 1, 2, 1.75], **{k: v[::-1] if k[0] != "s" else v for k, v in axes.items()})
    assert {p.settings.scheduler for p in grid.points} == {"ddpm"}
    assert {p.settings.log_variance_mix for p in grid.points} == {0, 0.2, 0.3, 0.4, 1}
    assert [p.settings.guidance_scale for p in grid.points] == sorted(p.settings.guidance_scale for p in grid.points)


def test_settings_that_sample_equal_images_are_one_point():
    """Guidance 1 has no interval, so that it is sampled once, and a value that is given twice is one."""
    grid = _grid(guidance_scales=[1, 2, 2], guidance_intervals=[[0, 1], [0.2, 0.8]])
    assert [(p.settings.guidance_scale, p.settings.guidance_interval) for p in grid.points] == [
        (1, (0, 1)),
        (2, (0, 1)),
        (2, (0.2, 0.8)),
    ]
    only = _grid(guidance_scales=[1], guidance_intervals=[[0.2, 0.8], [0.1, 0.9]])
    assert [p.settings.guidance_interval for p in only.points] == [(0, 1)]


def test_every_axis_reaches_the_settings():
    """Each value of a super-resolution axis and of the averages is a point of its own, in its own field."""
    axes = {
        "sr_guidance_scales": [1, 5],
        "sr_num_inference_steps": [2, 3],
        "sr_noise_levels": [0, 100],
        "sr_log_variance_mixes": [0.1, 0.3],
    }
    grid = _grid(guidance_scales=[2], scheduler="ddpm", ema_sigma_rels=[None, 0.05], **axes)
    assert len(grid.points) == 32
    for axis, field in (
        ("sr_guidance_scales", "sr_guidance_scale"),
        ("sr_num_inference_steps",) * 2,
        ("sr_noise_levels", "sr_noise_level"),
    ):
        assert {getattr(p.settings, field) for p in grid.points} == set(axes[axis])
    assert {p.settings.sr_log_variance_mix for p in grid.points} == {0.1, 0.3}
    assert {p.ema_sigma_rel for p in grid.points} == {None, 0.05}
    assert not grid.notes


def test_axes_that_do_not_apply_are_left_out_and_reported():
    """A generator of one stage gets no points that differ in what it does not have; what was not requested is not spoken of."""
    axes = {"sr_num_inference_steps": [2, 3], "sr_noise_levels": [0, 100], "ema_sigma_rels": [None, 0.05]}
    grid = _grid(ONE_STAGE, guidance_scales=[1, 2], **axes)
    assert len(grid.points) == 2
    assert {p.settings.sr_num_inference_steps for p in grid.points} == {6}
    assert [note.split(":")[0] for note in grid.notes] == ["tune.sr_num_inference_steps", "tune.sr_noise_levels", "tune.ema_sigma_rels"]
    assert all("does not apply, the generator" in note for note in grid.notes)
    assert not _grid(ONE_STAGE, guidance_scales=[1, 2]).notes
    upscaled = _grid(UPSCALED, guidance_scales=[1], **axes)
    assert len(upscaled.points) == 2 * 2, "an upscaler has steps, but no noise level of ours"
    assert [note.split(":")[0] for note in upscaled.notes] == ["tune.sr_noise_levels"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"log_variance_mixes": [None, 0.3]},
            r"tune\.log_variance_mixes: must be \[null\] unless tune\.scheduler is ddpm, got 0\.3 with model",
        ),
        ({"sr_log_variance_mixes": [0.0], "scheduler": "ddim"}, r"tune\.sr_log_variance_mixes.* got 0 with ddim"),
        ({"guidance_intervals": [[0.0, 1.0], [0.8, 0.2]]}, r"tune\.guidance_intervals.* got \[0\.8, 0\.2\]"),
        ({"guidance_intervals": [[0.5, 0.5]]}, r"tune\.guidance_intervals"),
    ],
)
def test_axes_that_contradict_each_other_are_refused(axes, message):
    """One line names the axis, what was given and what is accepted."""
    with pytest.raises(ConfigError, match=message):
        _grid(**axes)


@pytest.mark.parametrize(
    ("changes", "parts", "expected"),
    [
        ({}, ONE_STAGE, 16),
        ({"guidance_scale": 2.0}, ONE_STAGE, 32),
        ({"guidance_scale": 2.0, "guidance_interval": (0.25, 0.75)}, ONE_STAGE, 24),
        ({"guidance_scale": 2.0, "guidance_interval": (0.25, 0.75)}, CASCADE, 30),
        ({"sr_guidance_scale": 3.0}, CASCADE, 28),
        ({"sr_guidance_scale": 3.0}, GeneratorParts(super_resolution=True, upscaler=True, averages=False), 40),
    ],
)
def test_passes_count_guided_steps_twice(changes, parts, expected):
    """The cost of a point: every step once, and once more where guidance acts, in every stage."""
    assert nfe(SamplingSettings.model_validate({"guidance_scale": 1.0} | changes), parts) == expected


def test_survivors_are_the_lowest_fids():
    """In order of FID; points that failed are none; where all failed the first reason is reported."""
    points = [_point(fid=3.0), _point(fid=None, failed="no such level"), _point(fid=1.0), _point(fid=2.0)]
    assert survivors(points, 2) == [2, 3]
    assert survivors(points, 9) == [2, 3, 0]
    with pytest.raises(DataError, match=r"none of 1 points could be sampled and measured; the first: no such level"):
        survivors(points[1:2], 2)


def test_cas_decides_where_seeds_agree():
    """The best FID does not win against a clearly better CAS, nor does a point that was not scored."""
    points = [_point(1.0, 1.0, (0.80, 0.80)), _point(2.0, 2.0, (0.90, 0.90)), _point(3.0, 0.5)]
    assert choose_point(points).guidance_scale == 2.0


def test_within_one_standard_error_the_lower_fid_is_chosen():
    """A CAS that other seeds could turn round does not decide; one that is more than a standard error lower is out."""
    noisy = [_point(1.0, 1.0, (0.86, 0.90)), _point(2.0, 2.0, (0.87, 0.91))]
    assert standard_error(noisy) == pytest.approx(0.02)
    assert choose_point(noisy).guidance_scale == 1.0
    apart = [_point(1.0, 1.0, (0.845, 0.885)), _point(2.0, 2.0, (0.87, 0.91))]
    assert choose_point(apart).guidance_scale == 2.0


def test_ties_fall_to_fid_then_guidance_then_passes():
    """Among points of equal CAS the lower FID is chosen, then the lower guidance, then the cheaper."""
    assert choose_point([_point(1.0, 3.0, (0.9,)), _point(2.0, 2.0, (0.9,))]).guidance_scale == 2.0
    assert choose_point([_point(2.0, 2.0, (0.9,)), _point(1.0, 2.0, (0.9,))]).guidance_scale == 1.0
    assert choose_point([_point(2.0, 2.0, (0.9,), nfe=20), _point(2.0, 2.0, (0.9,), nfe=10)]).nfe == 10


def test_one_seed_has_no_standard_error():
    """With one classifier per survivor the best CAS is all there is to go by."""
    points = [_point(1.0, 1.0, (0.89,)), _point(2.0, 2.0, (0.90,))]
    assert standard_error(points) == 0.0
    assert choose_point(points).guidance_scale == 2.0


def test_a_point_that_failed_is_never_chosen():
    """Neither with a CAS of an earlier look, nor when it is the only one."""
    failed = _point(1.0, None, (0.99,), failed="its FID is nan")
    assert choose_point([failed, _point(2.0, 2.0, (0.5,))]).guidance_scale == 2.0
    with pytest.raises(DataError, match="no survivor could be sampled and scored; the first: its FID is nan"):
        choose_point([failed])


def test_the_front_holds_what_nothing_beats():
    """A point is off the front when another is as good in all three and better in one; equal points both stay on it."""
    points = [
        _point(1.0, 2.0, (0.9,), nfe=10),
        _point(2.0, 2.0, (0.9,), nfe=10),
        _point(3.0, 2.0, (0.9,), nfe=11),  # dearer
        _point(4.0, 3.0, (0.8,), nfe=5),  # worse, but cheaper
        _point(5.0, 1.0, nfe=20),  # the lowest FID, its CAS not measured
        _point(6.0, 2.0, nfe=10),  # as good as the first, its CAS not measured
        _point(7.0, None, failed="cannot be sampled", nfe=1),
        _point(8.0, 3.0, (0.8,), nfe=6),
    ]
    assert pareto(points) == [True, True, False, True, True, False, False, False]


def test_points_whose_intervals_overlap_the_best_are_alike():
    """So few images do not tell them from the lowest FID; without intervals nothing is reported."""
    points = [
        _point(1.0, 5.0, fid_ci95=(4.0, 6.0)),
        _point(2.0, 7.0, fid_ci95=(5.9, 8.0)),
        _point(3.0, 9.0, fid_ci95=(6.1, 12.0)),
        _point(4.0, None, failed="x"),
    ]
    assert like_the_best(points) == [True, True, False, False]
    assert like_the_best([_point(1.0, 5.0)]) == [False]
