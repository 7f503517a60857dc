"""Our extractors inside torch-fidelity, so that its metrics can be computed with them."""

import numpy as np
import torch
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from gda.fidelity.extractors.base import Extractor

LAYER = "features"


def register_extractor(extractor: Extractor) -> str:
    """Register with torch-fidelity and return the name there, e.g. `gda-glyph-1f2e3d4c`; a second call finds it registered."""
    name = f"gda-{extractor.identity.replace('@', '-').replace('/', '-')}"
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, _class_of(extractor))
    return name


def _class_of(extractor: Extractor) -> type[FeatureExtractorBase]:
    class Carried(FeatureExtractorBase):
        """The extractor on the CPU, where it always runs."""

        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(torch.from_numpy(np.asarray(extractor.features(images.cpu()))) for _ in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> torch.Tensor:
            return torch.zeros(1, 3, extractor.input_px, extractor.input_px, dtype=torch.uint8)

    return Carried
