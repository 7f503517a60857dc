"""The duration of a plan on this machine: the time of one pass of each network at the plan's batch size, times the passes."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gda.generator.planning.cost import Cost
from gda.generator.planning.networks import loaded_network

_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds per pass of one image, by network name; measured in batches of `rows`, by network name."""

    seconds: Mapping[str, float]
    rows: Mapping[str, int]

    def seconds_per_image(self, cost: Cost) -> float:
        """Of all networks, without encoding and writing the images."""
        return sum(self.seconds[part.network.name] * part.nfe for part in cost.parts)


def measure_rate(model: Any, cost: Cost, *, batch_size: int, budget_s: float = 30.0) -> Rate:
    """Time one pass of each network of the loaded `model`, on its device and in its precision, not compiled.

    Takes the median of three passes after a warm-up. A network that would take longer than `budget_s` seconds is timed in smaller
    batches, which is less accurate: on a GPU small batches are slower per image.
    """
    seconds, rows = {}, {}
    for part in cost.parts:
        network = part.network
        found = loaded_network(model, network)
        wanted = batch_size * (2 if part.guided else 1)
        run = partial(network.run, found)
        rows[network.name], seconds[network.name] = _time_pass(run, wanted, budget_s, found.device)
    return Rate(seconds=seconds, rows=rows)


def _time_pass(run: Callable[[int], None], wanted: int, budget_s: float, device: torch.device) -> tuple[int, float]:
    """Rows of the timed batch, and seconds per row."""
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
