"""`gda doctor`: what this machine has, and what is missing; it prints no secret."""

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from gda.errors import GdaError
from gda.io.hub_cache import cache_dir

_PACKAGES = ("gda", "torch", "diffusers", "transformers", "timm", "mlflow", "dvc", "great-expectations")
_LEAST_DISK = 2.0  # GiB


@dataclass(frozen=True, kw_only=True)
class MachineFact:
    """A line: what was looked at, what it is, and whether the job cannot run without it."""

    name: str
    value: str
    missing: bool = False


def machine_facts() -> Iterator[MachineFact]:
    """Everything that is looked at, cheapest first; MLflow's server is asked last."""
    from gda.project.machine import look_at_machine

    yield MachineFact(name="python", value=sys.version.split()[0])
    for package in _PACKAGES:
        yield _package(package)
    machine = look_at_machine()
    yield MachineFact(name="cpus", value=str(machine.cpus))
    yield MachineFact(name="memory", value=f"{machine.memory:.1f} GiB")
    little = f" (little: {_LEAST_DISK:g} GiB are wanted)" if machine.disk < _LEAST_DISK else ""
    yield MachineFact(name="free disk", value=f"{machine.disk:.1f} GiB{little}")
    gpu = f"{machine.gpu}, {machine.gpu_memory:.0f} GiB, {'with' if machine.bf16 else 'without'} bf16" if machine.gpu else "none"
    yield MachineFact(name="gpu", value=gpu)
    yield MachineFact(name="cuda", value=_cuda())
    yield MachineFact(name="hub cache", value=_hub_cache())
    base = Path(str(files("gda") / "assets/demo_base/generator.json")).is_file()
    yield MachineFact(name="demo base", value="present" if base else "MISSING", missing=not base)
    yield MachineFact(name="inception", value=_inception())
    yield _mlflow()


def _package(name: str) -> MachineFact:
    try:
        return MachineFact(name=name, value=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return MachineFact(name=name, value="MISSING", missing=name not in ("dvc",))


def _cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "torch is built for the CPU"
    return f"torch is built for {torch.version.cuda}" + ("" if torch.cuda.is_available() else ", no device is seen")


def _hub_cache() -> str:
    folder = cache_dir()
    models = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / 2**30
    return f"{folder}: {models} models, {free:.1f} GiB free"


def _inception() -> str:
    from gda.fidelity.extractors.inception import inception_weights_place

    place, _ = inception_weights_place()
    return "present" if place.is_file() else f"not here ({place}); needed for photographs"


def _mlflow() -> MachineFact:
    """Whether the server, or the database, answers; a job keeps its runs until it does."""
    from gda.tracking import connect, experiment_name, mlflow_errors, shown_uri, tracking_uri
    from gda.tracking.sqlite import database_file

    place, database = f"{shown_uri()} experiment {experiment_name()}", database_file(tracking_uri())
    if database is not None and not database.exists():
        return MachineFact(name="tracking", value=f"{place}: no database yet, the first run makes it")
    try:
        with mlflow_errors():
            connect().search_experiments(max_results=1)
    except GdaError as error:
        return MachineFact(name="tracking", value=f"{place}: {error}")
    return MachineFact(name="tracking", value=f"{place}: answers")
