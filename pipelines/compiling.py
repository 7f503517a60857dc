"""Pipelines as files: for the SDK and the user interface, and as the objects that GitOps applies; equal bytes wherever they are made."""

import hashlib
import importlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gda.errors import UsageError
from pipelines.options import CompileOptions
from pipelines.registry import PIPELINES

COMPILED = Path(__file__).with_name("compiled")
NAMESPACE = CompileOptions().namespace
# A Kubernetes object's name that is a label's value too, as a Kueue queue's and priority class's are.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_BY_DIGEST = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")


def checked_image(image: str) -> str:
    """`image`, if it names one by its digest. Raises `UsageError`: a tag may move, and a cached step would not know."""
    if not _BY_DIGEST.fullmatch(image):
        raise UsageError(f"--image {image}: accepted: REGISTRY/NAME@sha256:DIGEST, with 64 hexadecimal digits")
    return image


def checked_label(flag: str, value: str) -> str:
    """`value`, if pods can have it as a label, or it is empty. Raises `UsageError`: the cluster would refuse every pod that has it."""
    if value and not _LABEL.fullmatch(value):
        raise UsageError(f"{flag} {value}: accepted: up to 63 lower-case letters, digits, - and ., with a letter or digit at both ends")
    return value


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
    with tempfile.TemporaryDirectory() as folder:
        Compiler().compile(pipeline, str(Path(folder) / sdk))
        texts = {sdk: (Path(folder) / sdk).read_text("utf-8")}
        version = version_of(options, texts[sdk])
        objects = KubernetesManifestOptions(
            pipeline_name=name,
            pipeline_display_name=name,
            pipeline_version_name=f"{name}-{version}",
            pipeline_version_display_name=version,
            namespace=options.namespace,
            include_pipeline_manifest=True,
        )
        Compiler().compile(pipeline, str(Path(folder) / manifest), kubernetes_manifest_format=True, kubernetes_manifest_options=objects)
        return texts | {manifest: (Path(folder) / manifest).read_text("utf-8")}


def version_of(options: CompileOptions, text: str) -> str:
    """Version of the compiled pipeline `text`: the first digits of the image's digest, which fixes the code, and of the text's own.

    A cluster refuses an edited `PipelineVersion`: whatever differs, in the pipeline or in how its steps run, is another object.
    """
    return f"{options.image.rpartition(':')[2][:12]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
