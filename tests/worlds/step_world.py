"""Components called as functions, on a world of two colours: every step of the job in one process, in seconds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kfp import dsl
from PIL import Image

from components.classify import classify, gather_classifiers, plan_classifiers
from components.configure import configure
from components.evaluate import evaluate
from components.finetune import finetune
from components.promote import register
from components.reference import reference
from components.report import report
from components.sample import plan_sampling, sample, sample_shards
from components.snapshot import snapshot, snapshot_pool
from components.tune import tune
from components.validate import validate
from gda.config.load import parse_config
from gda.demo_base.build import build_tiny_cascade
from gda.steps.form import FORM, split_up

# Fast rather than good: these tests are about how steps fit together, so no rule of quality may refuse the set.
QUICK: dict[str, dict[str, Any]] = {
    "snapshot": {"val_fraction": 0.3, "test_fraction": 0.3},
    "reference": {"folds": 2, "num_train_steps": 8},
    "finetune": {"num_train_steps": 2, "sr_num_train_steps": 2, "batch_size": 4, "jitter": 0.0},
    "tune": {
        "guidance_scales": [1.0],
        "images_per_class": 4,
        "survivors": 1,
        "cas_images_per_class": 4,
        "cas_num_train_steps": 2,
        "cas_seeds": 1,
        "num_inference_steps": [1],
        "sr_num_inference_steps": [1],
        "batch_size": 4,
    },
    "sample": {"images_per_class": 6, "batch_size": 2, "shard_size": 4},
    "validate": {
        "fid_max_ratio": 1e9,
        "min_label_agreement": 0.0,
        "min_class_agreement": 0.0,
        "min_coverage_ratio": 0.0,
        "min_class_coverage_ratio": 0.0,
        "min_class_recall_ratio": 0.0,
        "min_class_diversity": 0.0,
        "max_copy_fraction": 1.0,
        "max_duplicate_fraction": 1.0,
        "max_near_duplicate_fraction": 1.0,
    },
    "classify": {
        "arms": ["real", "real+synthetic", "zero_shot"],
        "num_train_steps": 3,
        "mixed_num_train_steps": 3,
        "warmup_steps": 1,
        "batch_size": 8,
        "seeds": [0, 1],
        "control_seeds": [0],
        "image_size": 16,
    },
    "evaluate": {"num_resamples": 200},
    "promote": {"min_seeds": 2},
}


def two_textures(root: Path, per_class: int) -> Path:
    """Write `images/`, red and blue noise by class, and a random-weight `generator/` into `root`; returns `root`."""
    rng = np.random.default_rng(0)
    for name, colour in (("red", (180, 40, 40)), ("blue", (40, 40, 180))):
        (root / "images" / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.clip(rng.normal(colour, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{i}.png")
    build_tiny_cascade(root / "generator")
    return root


@dataclass
class Run:
    """A run of the components by hand. `call` runs one on this volume; its pages lie in `pages/<name>/<n>-<component>/`."""

    root: Path
    images: Path
    base: Path
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    name: str = "run-1"
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    calls: int = 0

    def form(self) -> dict[str, Any]:
        """The run's fields and JSON."""
        content = {section: values | self.changes.get(section, {}) for section, values in QUICK.items()}
        content["snapshot"] = content["snapshot"] | {"source": str(self.images)}
        content["finetune"] = content["finetune"] | {"base": str(self.base)}
        form, settings = split_up(parse_config(content, where="test"))
        assert set(form) == set(FORM)
        return form | {"settings": settings}

    def call(self, component: Any, **given: Any) -> Any:
        """Call `component` as a function with real artifacts of the SDK; returns what it returns."""
        function: Callable[..., Any] = component.python_func
        self.calls += 1
        folder = self.root / "pages" / self.name / f"{self.calls:02d}-{function.__name__}"
        folder.mkdir(parents=True)
        artifacts: dict[str, Any] = {}
        for name, spec in (component.component_spec.outputs or {}).items():
            kind = _ARTIFACTS.get(spec.type.split("@")[0])
            if kind is not None:
                artifacts[name] = kind(name=name, uri=str(folder / name))
        wanted = component.component_spec.inputs or {}
        if "data_root" in wanted:
            given = {"data_root": str(self.root / "volume")} | given
        result = function(**given, **artifacts)
        if "metrics" in artifacts:
            self.metrics[function.__name__] = dict(artifacts["metrics"].metadata)
        return result

    def configure(self) -> dict[str, str]:
        """The settings of each step, by the names of the component's outputs."""
        configured = self.call(
            configure, **self.form(), run=self.name, run_id="", title="", code_version="1", image="none", resources="none"
        )
        names = [name for name, spec in configure.component_spec.outputs.items() if spec.type == "String"]
        return dict(zip(names, configured, strict=True))

    def real(self, configured: dict[str, str]) -> dict[str, str]:
        """The steps that need no synthetic image: references by the names that later components give them."""
        known = {"code": configured["code"]}
        real = self.call(snapshot, settings=configured["snapshot"], **known)
        return {
            "snapshot": real,
            "pool": self.call(snapshot_pool, snapshot=real, settings=configured["snapshot_pool"], **known),
            "reference": self.call(reference, snapshot=real, settings=configured["reference"], **known),
        }

    def generated(self, configured: dict[str, str], have: dict[str, str]) -> dict[str, str]:
        """Fine-tuning, tuning and the three synthetic sets, that of the fine-tuned generator sampled by as many workers as are planned."""
        known = {"snapshot": have["snapshot"], "code": configured["code"]}
        generator = self.call(finetune, settings=configured["finetune"], resources="none", **known)
        tuning = self.call(tune, step="tune", generator=generator, settings=configured["tune"], measured=[], **known)
        base_tuning = self.call(tune, step="tune_zero_shot", generator="", settings=configured["tune_zero_shot"], measured=[], **known)
        source = {"generator": generator, "tuning": tuning, "resources": "none"} | known
        workers = self.call(plan_sampling, settings=configured["sample"], num_workers=2, **known)
        sampled = [self.call(sample_shards, worker=worker, settings=configured["sample"], **source) for worker in workers]
        base = {"generator": "", "tuning": base_tuning, "shards": [], "resources": "none"} | known
        return {
            "generator": generator,
            "tuning": tuning,
            "synthetic": self.call(sample, step="sample", settings=configured["sample"], shards=sampled, **source),
            "zero_shot": self.call(sample, step="sample_zero_shot", settings=configured["sample_zero_shot"], **base),
            "img2img": self.call(sample, step="sample_img2img", settings=configured["sample_img2img"], shards=[], **source),
        }

    def validated(self, configured: dict[str, str], have: dict[str, str]) -> Any:
        """The verdict, the set that it is about, and whether that passed."""
        given = {role: have[role] for role in ("synthetic", "snapshot", "reference", "generator")}
        return self.call(validate, settings=configured["validate"], code=configured["code"], **given)

    def compared(self, configured: dict[str, str], have: dict[str, str], verdict: str, accepted: str) -> dict[str, str]:
        """Every classifier, the evaluation and the registered challenger."""
        given = {role: have[role] for role in ("snapshot", "zero_shot", "img2img", "pool", "reference")} | {"accepted": accepted}
        runs = [
            self.call(
                classify, **item, verdict=verdict, settings=configured["classify"], code=configured["code"], resources="none", **given
            )
            for item in self.call(plan_classifiers, settings=configured["classify"], verdict=verdict, seeds_per_pod=0)
        ]
        runs = self.call(gather_classifiers, runs=runs)
        sets = {role: have[role] for role in ("snapshot", "zero_shot", "tuning")} | {"synthetic": accepted, "verdict": verdict}
        evaluation = self.call(evaluate, runs=runs, settings=configured["evaluate"], code=configured["code"], **sets)
        last = {"evaluation": evaluation, "verdict": verdict, "settings": configured["promote"], "code": configured["code"]}
        return {"evaluation": evaluation, "challenger": self.call(register, **last)}

    def report(self, state: str = "SUCCEEDED", error: str = "") -> tuple[str, str]:
        """The last step's text and page."""
        status = dsl.PipelineTaskFinalStatus(
            state=state, pipeline_job_resource_name=self.name, pipeline_task_name="job", error_code=0, error_message=error
        )
        self.call(report, run=self.name, status=status)
        folder = self.root / "pages" / self.name / f"{self.calls:02d}-report"
        return (folder / "summary").read_text(), (folder / "page").read_text()


_ARTIFACTS = {
    "system.Metrics": dsl.Metrics,
    "system.ClassificationMetrics": dsl.ClassificationMetrics,
    "system.Markdown": dsl.Markdown,
    "system.HTML": dsl.HTML,
}
