"""Pipelines as files: for the SDK and the user interface, and as the objects that GitOps applies; equal bytes wherever they are made."""

import importlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError
from pipelines.options import CompileOptions
from pipelines.registry import PIPELINES

COMPILED = Path(__file__).with_name("compiled")
NAMESPACE = "gda"
_BY_DIGEST = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")


def checked_image(image: str) -> str:
    """`image`, if it names one by its digest. Raises `UsageError`: a tag may move, and a cached step would not know."""
    if not _BY_DIGEST.fullmatch(image):
        raise UsageError(f"--image {image}: accepted: REGISTRY/NAME@sha256:DIGEST, with 64 hexadecimal digits")
    return image


def build(name: str, options: CompileOptions) -> Callable[..., Any]:
    """The pipeline function `name`. Raises `UsageError` for an unknown one."""
    if name not in PIPELINES:
        raise UsageError(f"{name}: no pipeline; accepted: {', '.join(PIPELINES)}")
    module, _, function = PIPELINES[name].partition(":")
    made: Callable[..., Any] = getattr(importlib.import_module(module), function)(options)
    return made


def file_names(name: str) -> tuple[str, str]:
    """Names of the two files of a pipeline."""
    return f"{name}.yaml", f"{name}.manifest.yaml"


def compile_pipeline(name: str, options: CompileOptions) -> dict[str, str]:
    """Text of both files by name."""
    from kfp.compiler import Compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    pipeline = build(name, options)
    sdk, manifest = file_names(name)
    objects = KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_display_name=name,
        pipeline_version_name=f"{name}-{version_of(options)}",
        pipeline_version_display_name=version_of(options),
        namespace=NAMESPACE,
        include_pipeline_manifest=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        Compiler().compile(pipeline, str(Path(folder) / sdk))
        Compiler().compile(pipeline, str(Path(folder) / manifest), kubernetes_manifest_format=True, kubernetes_manifest_options=objects)
        return {file: (Path(folder) / file).read_text("utf-8") for file in (sdk, manifest)}


def version_of(options: CompileOptions) -> str:
    """Version of the compiled pipeline: the first digits of the image's digest, which fixes the code."""
    return options.image.rpartition(":")[2][:12]
