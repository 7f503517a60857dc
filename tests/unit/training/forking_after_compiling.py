"""A separate process that first compiles a training, then trains in forked processes; it exits with 0 if they give the same bits."""

import sys
from dataclasses import replace

import torch
from training_world import TINY, coloured

from gda.runtime.parallel import run_parallel
from gda.training.loop.classifier import train_classifier
from gda.training.networks.export import model_digest


def digest_of_seed(seed: int) -> str:
    return model_digest(train_classifier([coloured(30)], TINY, num_classes=3, seed=seed)[0])


if __name__ == "__main__":
    by_torch = torch.compile
    # Without the code generator, which takes a minute.
    torch.compile = lambda model, **options: by_torch(model, backend="aot_eager", **options)  # type: ignore[assignment, call-overload]
    train_classifier([coloured(30)], replace(TINY, num_train_steps=1, compile=True), num_classes=3, seed=0)
    sys.exit(run_parallel(digest_of_seed, [0, 1], workers=2) != [digest_of_seed(0), digest_of_seed(1)])
