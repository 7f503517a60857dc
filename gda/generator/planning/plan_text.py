"""The text of a plan for the terminal: its shards, images, cost and time."""

import statistics
from collections import Counter

from gda.generator.planning.cost import Cost
from gda.generator.planning.duration import Rate
from gda.generator.planning.plan import ImagePlan, PlannedShard

_LISTED_SHARDS, _LISTED_CLASSES = 20, 10
_UNITS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP")


def describe_plan(plan: ImagePlan, cost: Cost | None, rate: Rate | None, *, workers: int = 1) -> list[str]:
    """Lines with the content of `plan`, its cost if `cost` is given, and its time if `rate` is given as well.

    Time covers the networks only: `rate` of one worker like this machine, and with `workers` of them, which sample whole shards.
    """
    lines = [*_shards(plan), *_images(plan)]
    if cost is not None:
        lines += _cost(cost)
    if cost is not None and rate is not None:
        lines += _time(plan, cost, rate, workers)
    return lines


def _shards(plan: ImagePlan) -> list[str]:
    if len(plan.shards) <= _LISTED_SHARDS:
        return [_shard(shard) for shard in plan.shards]
    return [_shard(plan.shards[0]), f"... {len(plan.shards) - 2:,} more shards ...", _shard(plan.shards[-1])]


def _shard(shard: PlannedShard) -> str:
    return f"{shard.name}  {_counted(len(shard.images), 'image')} in {_counted(len(shard.batches), 'batch', 'batches')}"


def _images(plan: ImagePlan) -> list[str]:
    images = [image for shard in plan.shards for batch in shard.batches for image in batch]
    batches = [len(batch) for shard in plan.shards for batch in shard.batches]
    by_class = Counter(image.label for image in images)
    counts = [by_class[label] for label in range(len(plan.classes))]
    lines = [
        f"{_counted(len(images), 'image')} of {_counted(len(counts), 'class', 'classes')} in {_counted(len(plan.shards), 'shard')}, "
        f"{_counted(len(batches), 'batch', 'batches')} of at most {max(batches)}"
    ]
    if len(set(counts)) == 1:
        lines.append(f"images per class: {counts[0]:,}")
    elif len(counts) <= _LISTED_CLASSES:
        lines.append("images per class: " + ", ".join(f"{name} {count:,}" for name, count in zip(plan.classes, counts, strict=True)))
    else:
        lines.append(f"images per class: {min(counts):,} to {max(counts):,}, median {statistics.median(counts):,g}")
    if any(image.source for image in images):
        by_strength = sorted(Counter(image.strength for image in images).items())
        other = sum(image.source_label != image.label for image in images)
        lines.append("images a strength: " + ", ".join(f"{strength:g} {count:,}" for strength, count in by_strength))
        lines.append(f"from {_counted(len({i.source for i in images}), 'real image')}; {other:,} towards another class than their source's")
    return lines


def _cost(cost: Cost) -> list[str]:
    parts = [f"{part.network.name} {_flops(part.flops)} x {part.nfe:.4g}" for part in cost.parts]
    return [
        f"an image costs {_flops(cost.flops_per_image)}: {', '.join(parts)} passes",
        f"the plan costs {_flops(cost.total_flops)}",
    ]


def _time(plan: ImagePlan, cost: Cost, rate: Rate, workers: int) -> list[str]:
    each = rate.seconds_per_image(cost)
    lines = [
        f"about {_duration(each * plan.num_images)} on this machine with one worker, {each:.3g} s an image, encoding and writing aside"
    ]
    if workers > 1:
        busiest = _busiest(plan, workers)
        lines.append(f"about {_duration(each * busiest)} with {workers} such workers, the busiest of which samples {busiest:,} images")
    return lines


def _busiest(plan: ImagePlan, workers: int) -> int:
    """Images of the busiest worker; shards are assigned to workers by their number."""
    assigned: Counter[int] = Counter()
    for shard in plan.shards:
        assigned[shard.number % workers] += len(shard.images)
    return max(assigned.values())


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _flops(flops: float) -> str:
    power = 0
    while flops >= 1000 and power < len(_UNITS) - 1:
        flops, power = flops / 1000, power + 1
    return f"{flops:.4g} {_UNITS[power]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"
