"""Copies, near matches and duplicates, on pictures whose relations are known."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from gda.errors import DataError
from gda.fidelity.copies import Space, check_copies, fingerprints, near_matches, relative_distance
from gda.fidelity.duplicates import duplicates, exact_matches
from gda.fidelity.neighbours import BLOCK, nearest


def pictures(seed: int, n: int, px: int = 28) -> torch.Tensor:
    """Different smooth grey pictures, uint8 NCHW."""
    coarse = torch.rand(n, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (px, px), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8).repeat(1, 3, 1, 1)


def through_pillow(images: torch.Tensor, change: str) -> torch.Tensor:
    """Each image re-encoded, resized and back, or mirrored."""
    out = []
    for image in images.permute(0, 2, 3, 1).numpy():
        picture, buffer = Image.fromarray(image), io.BytesIO()
        if change.startswith("jpeg"):
            picture.save(buffer, "JPEG", quality=int(change[4:]))
            picture = Image.open(buffer).convert("RGB")
        elif change == "resized":
            picture = picture.resize((32, 32), Image.Resampling.LANCZOS).resize(picture.size, Image.Resampling.BICUBIC)
        else:
            picture = picture.transpose(Image.Transpose[change])
        out.append(torch.from_numpy(np.array(picture)))
    return torch.stack(out).permute(0, 3, 1, 2)


@pytest.mark.parametrize("change", ["jpeg50", "jpeg90", "resized", "FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM", "ROTATE_180"])
def test_disguised_images_are_matched_to_their_originals(change: str) -> None:
    """Every re-encoded, resized or mirrored image is found, with the right original, and no other image is."""
    held_out = pictures(0, 60)
    queries = torch.cat([through_pillow(held_out[:20], change), pictures(1, 40)])
    found = near_matches(fingerprints(queries), fingerprints(held_out))
    assert [(match.query, match.reference) for match in found] == [(i, i) for i in range(20)]


def test_fingerprint_distance_is_rms_of_pixels() -> None:
    """The threshold is stated in pixel values: black against white is 1, a tenth lighter is a tenth."""
    levels = fingerprints(torch.tensor([0, 255, 51], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 28, 28))
    assert np.linalg.norm(levels[0, 0] - levels[1, 0]) == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(levels[0, 0] - levels[2, 0]) == pytest.approx(0.2, abs=1e-5)


def test_near_matches_inside_one_set_do_not_count_an_image_as_its_own() -> None:
    """Only the repeated pair is reported, from both sides."""
    images = torch.cat([pictures(0, 10), through_pillow(pictures(0, 1), "jpeg90")])
    prints = fingerprints(images)
    assert [(m.query, m.reference) for m in near_matches(prints, prints, same_set=True)] == [(0, 10), (10, 0)]
    assert near_matches(prints[:1], prints[:1], same_set=True) == []


def _space(synthetic: np.ndarray, holdout: np.ndarray, train: np.ndarray) -> Space:
    return Space(name="x", synthetic=synthetic, holdout=holdout, train=train)


def test_copies_are_flagged_and_new_images_only_at_the_stated_rate() -> None:
    """Planted copies are all found, with the image they copy; new images are flagged about as often as held-out ones."""
    rng = np.random.default_rng(0)
    train, holdout, new = rng.normal(size=(200, 6)), rng.normal(size=(400, 6)), rng.normal(size=(1000, 6))
    copies = train[:50] + rng.normal(scale=0.01, size=(50, 6))
    found = check_copies([_space(np.concatenate([copies, new]), holdout, train)], quantile=0.02)
    assert found.flagged[:50].all()
    assert (found.neighbour[:50] == np.arange(50)).all()
    assert found.flagged[50:].mean() < 0.05
    assert 0 < found.holdout_flagged.mean() <= 0.02


def test_nearness_is_judged_against_the_neighbourhood() -> None:
    """In a dense class everything is near everything without being a copy; in a sparse one a copy may be farther away than that."""
    rng = np.random.default_rng(0)
    dense, wide = (lambda n: rng.normal(scale=0.01, size=(n, 6))), (lambda n: rng.normal(size=(n, 6)) + 20)
    train, holdout = np.concatenate([dense(100), wide(100)]), np.concatenate([dense(200), wide(200)])
    found = check_copies([_space(dense(300), holdout, train)], quantile=0.01)
    assert found.flagged.mean() < 0.05
    copies = train[100:] + rng.normal(scale=0.05, size=(100, 6))
    assert nearest(copies, train)[0].min() > nearest(dense(300), train)[0].max()  # no absolute distance tells them apart
    assert check_copies([_space(copies, holdout, train)], quantile=0.01).flagged.all()


def test_a_copy_in_either_space_is_flagged() -> None:
    """A shifted copy is far in pixels and near in features; one space must be enough."""
    rng = np.random.default_rng(0)
    train, holdout = rng.normal(size=(100, 6)), rng.normal(size=(200, 6))
    far, near = _space(rng.normal(size=(100, 6)), holdout, train), _space(train.copy(), holdout, train)
    assert check_copies([far, near], quantile=0.02).flagged.all()


def test_identical_training_images_give_no_false_alarm_and_no_division_by_zero() -> None:
    """Where all real images coincide there is no floor to fall below."""
    same = np.zeros((20, 3))
    assert not check_copies([_space(same, same, same)], quantile=0.01).flagged.any()
    with pytest.raises(DataError):
        relative_distance(np.zeros((0, 3)), same)


def test_nearest_agrees_with_brute_force_across_blocks() -> None:
    """Blocking must not change the answer, at a block's edge above all."""
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(BLOCK + 3, 4)), rng.normal(size=(50, 4))
    brute = np.linalg.norm(queries[:, None] - references, axis=2)
    distances, indices = nearest(queries, references, k=3)
    assert (indices == np.argsort(brute, axis=1)[:, :3]).all()
    assert distances == pytest.approx(np.sort(brute, axis=1)[:, :3], abs=1e-6)
    own, _ = nearest(queries, queries, skip_self=True)
    assert (own > 0).all()


def test_exact_duplicates_and_matches_by_hash() -> None:
    """Later repeats are counted once each; matches name the first place."""
    assert duplicates(["a", "b", "a", "a"]) == [2, 3]
    assert exact_matches(["x", "b"], ["b", "c", "b"]) == [(1, 0)]
