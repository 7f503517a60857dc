"""Pipelines that go on from a run of `augment`: `promote` moves the champion; `evaluate`, `ratio` and `sweep` go further with it."""

from collections.abc import Callable
from typing import Any

from kfp import dsl, kubernetes

from components.evaluate import evaluate as evaluate_step
from components.look_up import look_up
from components.promote import promote as promote_step
from components.promote import register
from components.ratio import ratio as ratio_step
from components.tune import plan_points, tune_points
from components.tune import tune as tune_step
from pipelines.options import CompileOptions
from pipelines.steps import GPU, LIGHT, Placement

_CREDENTIAL = {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}
_KEPT = dsl.PipelineConfig(ttl_seconds_after_finished=7 * 24 * 3600, active_deadline_seconds=7 * 24 * 3600)


def build_promote(options: CompileOptions) -> Callable[..., Any]:
    """The pipeline that may move `champion`, under an account of its own."""

    @dsl.pipeline(
        name="promote",
        description="Apply the gate again to a run's candidate, and let `champion` point at it if the gate holds.",
        pipeline_config=_KEPT,
    )
    def promote(run: str, data_root: str = "/data", data_claim: str = "gda-data") -> None:
        """Apply the gate again to a run's candidate, and let `champion` point at it if the gate holds.

        Args:
            run: Name, id or title of the run of augment whose challenger is to be champion.
            data_root: Folder on the shared volume, which every step mounts at /data.
            data_claim: The volume's claim.
        """
        place = Placement(options=options, data_claim=data_claim)
        found = look_up(run=run, settings="{}", accepted="", data_root=data_root, resources="")
        place(found, LIGHT, title="look the run up", cached=False)
        done = promote_step(
            evaluation=found.outputs["evaluation"],
            verdict=found.outputs["verdict"],
            settings=found.outputs["promote_settings"],
            data_root=data_root,
            code=found.outputs["code"],
        )
        place(done, LIGHT, title="promote", cached=False)
        # The one credential that may move an alias; the account of other runs cannot read it.
        kubernetes.use_secret_as_env(done, "gda-mlflow-promote", _CREDENTIAL, optional=True)

    return promote


def build_evaluate(options: CompileOptions) -> Callable[..., Any]:
    """The comparison again, as with other robustness sets or another confidence, on the classifiers that a run has trained."""

    @dsl.pipeline(
        name="evaluate",
        description="Compare the classifiers of a run again, with other settings of the comparison, and register the candidate.",
        pipeline_config=_KEPT,
    )
    def evaluate(
        run: str,
        settings: str = "{}",
        data_root: str = "/data",
        data_claim: str = "gda-data",
        cpu: str = "4",
        memory: str = "16Gi",
        gpu_type: str = "nvidia.com/gpu",
        gpu_count: str = "1",
        node_selector: dict = {},  # noqa: B006
        tolerations: list = [],  # noqa: B006
    ) -> None:
        """Compare the classifiers of a run again, with other settings of the comparison.

        Args:
            run: Name, id or title of the run of augment whose classifiers are compared.
            settings: Settings of the sections evaluate and promote over those of the run, as one JSON object.
            data_root: Folder on the shared volume, which every step mounts at /data.
            data_claim: The volume's claim.
            cpu: Processors of a step that computes.
            memory: Memory of a step that computes.
            gpu_type: Resource name of the accelerators.
            gpu_count: Accelerators of a step that computes; 0 for none.
            node_selector: Labels of the nodes for steps that compute, as a JSON object.
            tolerations: Taints that these steps tolerate, as a JSON list.
        """
        place = Placement(
            options=options, data_claim=data_claim, cpu=cpu, memory=memory, gpu_type=gpu_type, gpu_count=gpu_count,
            node_selector=node_selector, tolerations=tolerations,
        )  # fmt: skip
        found = look_up(
            run=run, settings=settings, accepted="evaluate promote", data_root=data_root, resources=f"{cpu} {memory} {gpu_count} {gpu_type}"
        )
        place(found, LIGHT, title="look the run up", cached=False)
        made = {name: found.outputs[name] for name in ("runs", "snapshot", "zero_shot", "tuning", "verdict", "code")}
        own_settings = found.outputs["evaluate_settings"]
        compared = evaluate_step(synthetic=found.outputs["accepted"], settings=own_settings, data_root=data_root, **made)
        place(compared, GPU, title="evaluate")
        version = register(
            evaluation=compared.outputs["Output"],
            verdict=found.outputs["verdict"],
            settings=found.outputs["promote_settings"],
            data_root=data_root,
            code=found.outputs["code"],
        )
        place(version, LIGHT, title="register challenger", cached=False)

    return evaluate


def build_ratio(options: CompileOptions) -> Callable[..., Any]:
    """The curve of accuracy by ratio, on the synthetic set of a run."""

    @dsl.pipeline(
        name="ratio",
        description="Find how many synthetic images help: accuracy on validation by the ratio of synthetic to real, and its peak.",
        pipeline_config=_KEPT,
    )
    def ratio(
        run: str,
        settings: str = "{}",
        data_root: str = "/data",
        data_claim: str = "gda-data",
        cpu: str = "4",
        memory: str = "16Gi",
        gpu_type: str = "nvidia.com/gpu",
        gpu_count: str = "1",
        node_selector: dict = {},  # noqa: B006
        tolerations: list = [],  # noqa: B006
    ) -> None:
        """Find how many synthetic images help: accuracy on validation by the ratio of synthetic to real, and its peak.

        Args:
            run: Name, id or title of the run of augment whose synthetic set is tried.
            settings: Settings of the section ratio over those of the run, as one JSON object.
            data_root: Folder on the shared volume, which every step mounts at /data.
            data_claim: The volume's claim.
            cpu: Processors of a step that computes.
            memory: Memory of a step that computes.
            gpu_type: Resource name of the accelerators.
            gpu_count: Accelerators of a step that computes; 0 for none.
            node_selector: Labels of the nodes for steps that compute, as a JSON object.
            tolerations: Taints that these steps tolerate, as a JSON list.
        """
        place = Placement(
            options=options, data_claim=data_claim, cpu=cpu, memory=memory, gpu_type=gpu_type, gpu_count=gpu_count,
            node_selector=node_selector, tolerations=tolerations,
        )  # fmt: skip
        found = look_up(
            run=run, settings=settings, accepted="ratio", data_root=data_root, resources=f"{cpu} {memory} {gpu_count} {gpu_type}"
        )
        place(found, LIGHT, title="look the run up", cached=False)
        curve = ratio_step(
            snapshot=found.outputs["snapshot"],
            synthetic=found.outputs["accepted"],
            verdict=found.outputs["verdict"],
            settings=found.outputs["ratio_settings"],
            data_root=data_root,
            code=found.outputs["code"],
        )
        place(curve, GPU, title="ratio")

    return ratio


def build_sweep(options: CompileOptions) -> Callable[..., Any]:
    """A wider search for the sampling settings, its points over many pods."""

    @dsl.pipeline(
        name="sweep",
        description="Search guidance, steps and averages of a run's generator over many pods: FID of every point, then CAS of the best.",
        pipeline_config=_KEPT,
    )
    def sweep(
        run: str,
        settings: str = '{"tune": {"guidance_scales": [1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0]}}',
        workers: int = 4,
        data_root: str = "/data",
        data_claim: str = "gda-data",
        cpu: str = "4",
        memory: str = "16Gi",
        gpu_type: str = "nvidia.com/gpu",
        gpu_count: str = "1",
        node_selector: dict = {},  # noqa: B006
        tolerations: list = [],  # noqa: B006
    ) -> None:
        """Search guidance, steps and averages of a run's generator over many pods: FID of every point, then CAS of the best.

        Args:
            run: Name, id or title of the run of augment whose generator is tuned.
            settings: The axes, in section tune over that of the run, as one JSON object.
            workers: Pods that share the points, 1 to 50.
            data_root: Folder on the shared volume, which every step mounts at /data.
            data_claim: The volume's claim.
            cpu: Processors of a step that computes.
            memory: Memory of a step that computes.
            gpu_type: Resource name of the accelerators.
            gpu_count: Accelerators of a step that computes; 0 for none.
            node_selector: Labels of the nodes for steps that compute, as a JSON object.
            tolerations: Taints that these steps tolerate, as a JSON list.
        """
        place = Placement(
            options=options, data_claim=data_claim, cpu=cpu, memory=memory, gpu_type=gpu_type, gpu_count=gpu_count,
            node_selector=node_selector, tolerations=tolerations,
        )  # fmt: skip
        given = f"{cpu} cpu, {memory}, {gpu_count} {gpu_type}"
        found = look_up(run=run, settings=settings, accepted="tune", data_root=data_root, resources=given)
        place(found, LIGHT, title="look the run up", cached=False)
        given_to_all = {name: found.outputs[name] for name in ("snapshot", "generator", "code")} | {
            "settings": found.outputs["tune_settings"]
        }
        # In a group, of runs that came to have a generator: see augment.
        with dsl.If(found.outputs["generator"] != "", name="spread"):
            planned = plan_points(settings=found.outputs["tune_settings"], num_workers=workers)
            place(planned, LIGHT, title="plan of the sweep")
            with dsl.ParallelFor(planned.outputs["Output"], parallelism=options.parallelism) as worker:
                points = tune_points(worker=worker, data_root=data_root, resources=given, **given_to_all)
                place(points, GPU, title="measure points")
            best = tune_step(step="tune", measured=dsl.Collected(points.output), data_root=data_root, **given_to_all)
            place(best, GPU, title="choose")

    return sweep
