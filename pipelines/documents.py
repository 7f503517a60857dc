"""Compiled pipelines as they are read from their files."""

from pathlib import Path
from typing import Any

from pipelines.errors import UsageError


def read_compiled(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification and its Kubernetes part, of either form of file. Raises `UsageError` for anything else."""
    import yaml

    try:
        documents = [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: no compiled pipeline ({error})") from None
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "PipelineVersion":
            return document["spec"]["pipelineSpec"], document["spec"].get("platformSpec") or {}
    specs = [document for document in documents if isinstance(document, dict) and "pipelineInfo" in document]
    if not specs:
        raise UsageError(f"{path}: no compiled pipeline; accepted: what python -m pipelines compile writes")
    platforms = [document for document in documents if "platforms" in document]
    return specs[0], platforms[0] if platforms else {}
