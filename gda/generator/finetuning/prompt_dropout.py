"""Prompt dropout: some images of a batch are trained without their prompt, which classifier-free guidance needs."""

from collections.abc import Sequence

from gda.runtime.torch_rng import RandomStreams


def drop_prompts(prompts: Sequence[str], share: float, streams: RandomStreams) -> list[str]:
    """The prompts of n images, each replaced by the empty prompt with probability `share`, by the image's own stream."""
    dropped = (streams.uniform() < share).tolist()
    return ["" if drop else prompt for drop, prompt in zip(dropped, prompts, strict=True)]
