"""How long a plan takes on this machine: one pass of each network, timed at the plan's batch shape, times the passes."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gda.generator.planning.cost import Cost
from gda.generator.planning.networks import loaded_network

# Measured with a small latent model in batches of 8 on two CPU cores, against eager float32: what `torch.compile` alone gains,
# and together with bfloat16. Measure it where it matters.
COMPILE_GAINS = {"fp32": 1.1, "bf16": 2.2}
COMPILE_SECONDS = 65.0  # a network and batch shape, on the same machine
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds of one pass of one image by network name, in batches of `rows` by network name."""

    seconds: Mapping[str, float]
    rows: Mapping[str, int]

    def seconds_per_image(self, cost: Cost, *, denoisers: bool = False) -> float:
        """Of all networks, or of those alone that `torch.compile` is for; writing images is not in it."""
        parts = [part for part in cost.parts if part.network.role == "denoise" or not denoisers]
        return sum(self.seconds[part.network.name] * part.passes for part in parts)


def measure_rate(model: Any, cost: Cost, *, batch_size: int, budget_s: float = 30.0) -> Rate:
    """Time one pass of each network of the loaded `model`, on the device and in the precision that it has, not compiled.

    The median of three passes after a warm-up. A network that would take longer than `budget_s` seconds for that is timed in smaller
    batches, which shows less: on a GPU small batches are slower an image.
    """
    seconds, rows = {}, {}
    for part in cost.parts:
        network = part.network
        found = loaded_network(model, network)
        wanted = batch_size * (2 if part.guided else 1)
        run = partial(network.run, found)
        rows[network.name], seconds[network.name] = _time_pass(run, wanted, budget_s, found.device)
    return Rate(seconds=seconds, rows=rows)


def break_even(
    seconds_per_image: float, *, compiled: int = 1, compile_seconds: float = COMPILE_SECONDS, gain: float = COMPILE_GAINS["fp32"]
) -> int:
    """Images per worker from which compiling pays: compile time over the time that it saves an image.

    `seconds_per_image` is that of the networks that are compiled, before; `compiled` counts networks times batch shapes; `gain` > 1 is
    how many times as fast they become.
    """
    assert gain > 1.0, "nothing is gained"
    return math.ceil(compiled * compile_seconds * gain / (seconds_per_image * (gain - 1.0)))


def _time_pass(run: Callable[[int], None], wanted: int, budget_s: float, device: torch.device) -> tuple[int, float]:
    """Rows of the timed batch, and seconds a row."""
    first = _timed(run, 1, device)
    if first > budget_s:
        return 1, first
    rows = max(1, min(wanted, int(budget_s / ((1 + _REPEATS) * first))))
    _timed(run, rows, device)
    return rows, statistics.median(_timed(run, rows, device) for _ in range(_REPEATS)) / rows


def _timed(run: Callable[[int], None], rows: int, device: torch.device) -> float:
    begin = time.perf_counter()
    run(rows)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
