"""The gate before a synthetic set is used, and what is left of a run that it refuses."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(
    synthetic: str,
    snapshot: str,
    reference: str,
    generator: str,
    settings: str,
    data_root: str,
    code: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
) -> NamedTuple("Validated", [("verdict", str), ("accepted", str), ("passed", bool)]):  # type: ignore[valid-type]
    """Decide whether the synthetic set may be used, and say why."""
    from gda.steps.step import run_step

    inputs = {"synthetic": synthetic, "snapshot": snapshot, "reference": reference, "generator": generator}
    step = run_step("validate", inputs=inputs, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary, page=page)
    return step.reference(), step.reference("data/accepted"), not step.record.refused


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reject(verdict: str, summary: dsl.Output[dsl.Markdown], page: dsl.Output[dsl.HTML]) -> str:
    """Say why the synthetic set was refused; no classifier is trained on it, and nothing is registered."""
    from gda.steps.entry import rejected

    return rejected(verdict, summary=summary, page=page)
