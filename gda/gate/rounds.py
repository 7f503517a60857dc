"""Rounds of taking out the images that a set was refused for and drawing others in their place."""

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
    """A set with what was found about it; `dropped` says by round which images were taken out on the way to it, and why, by key."""

    snapshot: Snapshot
    found: Inspection
    verdict: Verdict
    dropped: tuple[Mapping[str, str], ...] = field(default=())


Judge = Callable[[Snapshot], tuple[Inspection, Verdict]]
Replace = Callable[[Snapshot, Mapping[str, str], int], Snapshot]  # of a set, why by key, and the number of the round


def replace_rejected(first: Assessed, config: ValidateConfig, *, assess: Judge, replace: Replace) -> Assessed:
    """Rounds until the set passes, no image is to blame, `replacement_rounds` are over or more than `max_replaced_fraction` would go.

    What is returned was judged as a whole, like any other set; its verdict says what was dropped, and how the set was judged before.
    """
    current, size, drawn = first, len(first.snapshot.manifest()), len(first.snapshot.manifest())
    while not current.verdict.passed and len(current.dropped) < config.replacement_rounds:
        blamed = flagged_images(current.found, current.verdict)
        if not blamed:
            break
        gone = sum(map(len, current.dropped)) + len(blamed)
        if gone > config.max_replaced_fraction * drawn:
            return _given_up(current, gone / drawn, config)
        snapshot = replace(current.snapshot, blamed, len(current.dropped) + 1)
        found, verdict = assess(snapshot)
        current = Assessed(
            snapshot=snapshot, found=found, verdict=_told(verdict, first, (*current.dropped, blamed)), dropped=(*current.dropped, blamed)
        )
        drawn = size + gone
    return current


def _told(verdict: Verdict, first: Assessed, dropped: tuple[Mapping[str, str], ...]) -> Verdict:
    before = first.verdict
    filtering = Filtering(
        rounds=len(dropped),
        dropped=dict(sorted(Counter(why for blamed in dropped for why in blamed.values()).items())),
        synthetic_digest=before.synthetic_digest,
        reasons=before.reasons,
        metrics=before.metrics,
    )
    return verdict.model_copy(update={"filtering": filtering})


def _given_up(accepted: Assessed, share: float, config: ValidateConfig) -> Assessed:
    reason = (
        f"{share:.1%} of the images drawn would have to be dropped; at most {config.max_replaced_fraction:.1%} is accepted, "
        "for beyond that it is the generator that is at fault"
    )
    verdict = accepted.verdict.model_copy(update={"reasons": (*accepted.verdict.reasons, reason)})
    return Assessed(snapshot=accepted.snapshot, found=accepted.found, verdict=verdict, dropped=accepted.dropped)
