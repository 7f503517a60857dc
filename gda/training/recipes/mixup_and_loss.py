"""Targets of a batch: mixup and cutmix of images and labels, soft targets, and the loss."""

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from gda.runtime.torch_rng import seeded_globals


class Mixing:
    """mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of whole batches; with both, each batch gets one of them."""

    def __init__(self, *, mixup: float, cutmix: float, label_smoothing: float, num_classes: int) -> None:
        self._alphas = {"mixup_alpha": mixup, "cutmix_alpha": cutmix}
        self._mixup = Mixup(**self._alphas, label_smoothing=label_smoothing, num_classes=num_classes)

    def __call__(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix an even number of images (float NCHW) and their int64 labels; returns inputs and targets, float [n, classes]."""
        # timm pairs the first image with the last and so on; our batches are ordered by source, so shuffle them first.
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        with seeded_globals(generator):
            mixed: tuple[Tensor, Tensor] = self._mixup(inputs[order], labels[order])
        return mixed

    def blend(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same mixed inputs, and float [n, n]: the weights of the given images in each mixed one, which sum to 1 per row."""
        n = len(inputs)
        order = torch.randperm(n, generator=generator).to(inputs.device)
        # With an image's place as its label, the mixed labels are the weights of the places.
        places = Mixup(**self._alphas, label_smoothing=0.0, num_classes=n)
        with seeded_globals(generator):
            blended: tuple[Tensor, Tensor] = places(inputs[order], order)
        return blended


def soft_targets(labels: Tensor, second: Tensor | None, first_share: Tensor | None, *, num_classes: int, label_smoothing: float) -> Tensor:
    """float [n, classes]: `first_share` for the label, the rest for the `second` one (-1 for none), then smoothed.

    Without the two, the label has weight 1. Smoothing by e turns a target t into (1 - e) t + e / classes (Szegedy et al. 2016, section 7).
    """
    targets = F.one_hot(labels, num_classes).float()
    if second is not None and first_share is not None:
        targets *= first_share[:, None]
        targets.scatter_add_(1, second.clamp(min=0)[:, None], (1.0 - first_share)[:, None])
    return (1.0 - label_smoothing) * targets + label_smoothing / num_classes


class WeightedLoss(nn.Module):
    """Cross-entropy (`ce`) or binary cross-entropy (`bce`) to soft targets, averaged over images by their weights."""

    def __init__(self, loss: str, *, bce_threshold: float) -> None:
        super().__init__()
        self._loss, self._threshold = loss, bce_threshold

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The scalar sum(w l) / sum(w) of logits and smoothed targets float [n, classes] and weights float [n] above 0."""
        if self._loss == "bce":
            hard = targets.gt(self._threshold).to(targets.dtype) if self._threshold else targets
            losses = F.binary_cross_entropy_with_logits(logits, hard, reduction="none").mean(dim=1)
        else:
            losses = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
        return (weights * losses).sum() / weights.sum()


def make_loss(loss: str, *, label_smoothing: float, bce_threshold: float, mixed: bool) -> nn.Module:
    """Cross-entropy (`ce`) or binary cross-entropy (`bce`) to labels, or to targets that mixing has already smoothed."""
    if loss == "bce":
        return BinaryCrossEntropy(smoothing=label_smoothing, target_threshold=bce_threshold or None)
    return SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(label_smoothing)
