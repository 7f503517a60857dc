"""Rounds of replacing the images that a set was refused for."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gda.artifacts.verdict import Filtering, Verdict
from gda.config.sections import ValidateConfig
from gda.data.store.snapshot import Snapshot
from gda.gate.flagged import flagged_images
from gda.gate.inspection import Inspection


@dataclass(frozen=True, kw_only=True)
class Assessed:
    """A set with its inspection and verdict; `dropped` has a mapping per round, from the key of each removed image to the reason."""

    snapshot: Snapshot
    found: Inspection
    verdict: Verdict
    dropped: tuple[Mapping[str, str], ...] = field(default=())


Assess = Callable[[Snapshot], tuple[Inspection, Verdict]]
Replace = Callable[[Snapshot, Mapping[str, str], int], Snapshot]  # a set, reason by key of its flagged images, number of the round


def replace_rejected(first: Assessed, config: ValidateConfig, *, assess: Assess, replace: Replace) -> Assessed:
    """Replace flagged images until the set passes or no image is flagged, at most `replacement_rounds` times.

    It also ends when more than `max_replaced_fraction` of all generated images would be dropped. The returned set was assessed as a whole,
    like any other; its verdict also holds what was dropped and the first verdict.
    """
    current, size, generated = first, len(first.snapshot.manifest()), len(first.snapshot.manifest())
    while not current.verdict.passed and len(current.dropped) < config.replacement_rounds:
        flagged = flagged_images(current.found, current.verdict)
        if not flagged:
            break
        gone = sum(map(len, current.dropped)) + len(flagged)
        if gone > config.max_replaced_fraction * generated:
            return _given_up(current, gone / generated, config)
        snapshot = replace(current.snapshot, flagged, len(current.dropped) + 1)
        found, verdict = assess(snapshot)
        dropped = (*current.dropped, flagged)
        current = Assessed(snapshot=snapshot, found=found, verdict=_with_filtering(verdict, first, dropped), dropped=dropped)
        generated = size + gone
    return current


def _with_filtering(verdict: Verdict, first: Assessed, dropped: tuple[Mapping[str, str], ...]) -> Verdict:
    before = first.verdict
    filtering = Filtering(
        rounds=len(dropped),
        dropped=dict(sorted(Counter(why for flagged in dropped for why in flagged.values()).items())),
        synthetic_digest=before.synthetic_digest,
        reasons=before.reasons,
        metrics=before.metrics,
    )
    return verdict.model_copy(update={"filtering": filtering})


def _given_up(accepted: Assessed, share: float, config: ValidateConfig) -> Assessed:
    reason = (
        f"{share:.1%} of the generated images would have to be dropped; at most {config.max_replaced_fraction:.1%} is accepted, "
        "because beyond that the generator itself is at fault"
    )
    verdict = accepted.verdict.model_copy(update={"reasons": (*accepted.verdict.reasons, reason)})
    return Assessed(snapshot=accepted.snapshot, found=accepted.found, verdict=verdict, dropped=accepted.dropped)
