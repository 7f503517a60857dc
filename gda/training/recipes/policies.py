"""timm's RandAugment and random erasing on batches; both use the global generators, which a stream seeds for the call."""

import torch
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from gda.errors import ConfigError
from gda.runtime.torch_rng import seeded_globals


class RandAugmentPolicy:
    """RandAugment (Cubuk et al. 2020) in timm's notation, with separate operations for each image; shifts are filled with `mean`."""

    def __init__(self, name: str, *, image_size: int, mean: tuple[float, float, float]) -> None:
        fill = tuple(min(255, round(255 * value)) for value in mean)
        try:
            self._transform = rand_augment_transform(name, {"translate_const": int(image_size * 0.45), "img_mean": fill})
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"classify.rand_augment: timm does not know {name!r} ({type(error).__name__}: {error})") from None

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented uint8 NCHW images."""
        with seeded_globals(generator):
            changed = [pil_to_tensor(self._transform(to_pil_image(image))) for image in images.cpu()]
        return torch.stack(changed).to(images.device)


class ErasingPolicy:
    """Random erasing (Zhong et al. 2020) as DeiT has it: a share of the images gets a rectangle of normal noise."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised float NCHW, changed in place."""
        with seeded_globals(generator):
            erased: Tensor = RandomErasing(probability=self._share, mode="pixel", device=str(inputs.device))(inputs)
        return erased
