"""The first step of pipelines that go on from a run of `augment`."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def look_up(run: str, settings: str, accepted: str, data_root: str, resources: str, summary: dsl.Output[dsl.Markdown]) -> NamedTuple(  # type: ignore[valid-type]
    "Found",
    [
        ("snapshot", str),
        ("generator", str),
        ("accepted", str),
        ("zero_shot", str),
        ("tuning", str),
        ("verdict", str),
        ("evaluation", str),
        ("runs", list[str]),
        ("code", str),
        ("evaluate_settings", str),
        ("promote_settings", str),
        ("ratio_settings", str),
        ("tune_settings", str),
    ],
):
    """Find what a run made, and tell the steps after it their settings: as in that run, with the JSON object over it.

    `accepted` are the sections that it may be of; `resources` is what later pods are given.
    """
    from gda.steps.entry import looked_up

    return tuple(looked_up(run, settings, accepted=accepted, data_root=data_root, summary=summary).values())
