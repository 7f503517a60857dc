"""Batched augmentation of uint8 images."""

import torch

from gda.runtime.torch_rng import torch_stream
from gda.training.recipes.augment import augment, normalise_pixels


def dots(count: int, side: int = 28) -> torch.Tensor:
    """Black images with one white pixel in the middle."""
    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    images[:, :, side // 2, side // 2] = 255
    return images


def test_normalise_maps_black_and_white_to_the_ends() -> None:
    """0 becomes -1 and 255 becomes 1: what mean and std 0.5 of an exported classifier mean."""
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert normalise_pixels(images).flatten().tolist() == [-1.0, 1.0]


def test_standard_shifts_by_up_to_two_pixels_of_28_and_no_more() -> None:
    """The dot reaches every one of the 25 places within two pixels and none beyond, and no image loses it."""
    out = augment(dots(2000), "standard", torch_stream(0, "a"))
    places = {(int(y), int(x)) for _, c, y, x in torch.nonzero(out == 1.0) if c == 0}
    assert places == {(14 + dy, 14 + dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    assert torch.equal((out == 1.0).sum(dim=(1, 2, 3)), torch.full((2000,), 3))


def test_nothing_is_mirrored_unless_requested() -> None:
    """A left-right gradient keeps its direction under both strengths; with horizontal_flip about half are mirrored."""
    ramp = torch.arange(28, dtype=torch.uint8).mul(9).expand(200, 3, 28, 28).contiguous()
    for strength in ("standard", "strong"):
        out = augment(ramp, strength, torch_stream(0, strength))
        assert bool((out[:, :, :, 20:].mean(dim=(1, 2, 3)) > out[:, :, :, :8].mean(dim=(1, 2, 3))).all())
    flipped = augment(ramp, "standard", torch_stream(0, "flip"), horizontal_flip=True)
    turned = (flipped[..., -1] < flipped[..., 0]).all(dim=(1, 2)).sum()
    assert 70 < int(turned) < 130


def test_strong_keeps_the_middle_and_erases_some() -> None:
    """The affine map is centred: a big disc mostly stays in place, and a quarter of the images lose a rectangle."""
    white = torch.full((400, 3, 28, 28), 255, dtype=torch.uint8)
    out = augment(white, "strong", torch_stream(0, "s"))
    erased = (out == 0.0).any(dim=3).any(dim=2).any(dim=1)
    assert 0.18 < float(erased.double().mean()) < 0.32
    assert float((out == 0.0).double().mean(dim=(1, 2, 3)).max()) < 0.2
    square = torch.zeros(200, 3, 28, 28, dtype=torch.uint8)
    square[:, :, 4:24, 4:24] = 255
    assert float((augment(square, "strong", torch_stream(0, "m"))[:, :, 10:18, 10:18] > -0.99).double().mean()) > 0.99


def test_one_stream_gives_one_outcome() -> None:
    """Augmentation depends only on its generator, not on torch's global one."""
    images = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8, generator=torch_stream(5, "images"))
    for strength in ("standard", "strong"):
        torch.manual_seed(1)
        first = augment(images, strength, torch_stream(0, "x"))
        torch.manual_seed(2)
        assert torch.equal(first, augment(images, strength, torch_stream(0, "x")))
        assert not torch.equal(first, augment(images, strength, torch_stream(1, "x")))


def area_seen(images: torch.Tensor) -> torch.Tensor:
    """Visible share of each image, from ramps over x and y in the first two channels."""
    grey = (images + 1) * 127.5
    spans = [(grey[:, c].amax((1, 2)) - grey[:, c].amin((1, 2))) / 252 for c in (0, 1)]
    return spans[0] * spans[1]


def test_strong_adds_to_a_recipe_and_takes_nothing_from_it() -> None:
    """Protects the strongest rival: with an ImageNet recipe the strong arm crops as the standard one does, and also distorts."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    ramps = torch.stack([4 * x, 4 * y, 0 * x]).to(torch.uint8)[None].repeat(400, 1, 1, 1)
    seen = {strength: area_seen(augment(ramps, strength, torch_stream(0, "r"), crop_area=0.08)) for strength in ("standard", "strong")}
    assert seen["strong"].median() < 1.1 * seen["standard"].median() < 0.7
    assert seen["strong"].quantile(0.05) < 1.2 * seen["standard"].quantile(0.05)
    assert not torch.equal(seen["strong"], seen["standard"])
