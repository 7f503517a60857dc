"""The first step of a run: the form's fields and the JSON of all other settings become each later step's settings."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def configure(
    data: str,
    pool: str,
    base_model: str,
    method: str,
    num_train_steps: int,
    images_per_class: int,
    guidance_scale: float,
    classifier: str,
    image_size: int,
    ratio: float,
    classifier_train_steps: int,
    num_seeds: int,
    fid_max_ratio: float,
    alpha: float,
    min_seeds: int,
    model_name: str,
    seed: int,
    settings: str,
    data_root: str,
    run: str,
    run_id: str,
    title: str,
    code_version: str,
    image: str,
    resources: str,
    summary: dsl.Output[dsl.Markdown],
) -> NamedTuple(  # type: ignore[valid-type]
    "Configured",
    [
        ("code", str),
        ("snapshot", str),
        ("snapshot_pool", str),
        ("reference", str),
        ("finetune", str),
        ("tune", str),
        ("tune_zero_shot", str),
        ("sample", str),
        ("sample_zero_shot", str),
        ("sample_img2img", str),
        ("validate", str),
        ("classify", str),
        ("evaluate", str),
        ("promote", str),
    ],
):
    """Check every setting, write the resolved whole down under the run's name, and give each step its sections."""
    form = dict(locals())
    from gda.steps.entry import configured

    return configured(form, summary=summary)


__all__ = ["configure"]
