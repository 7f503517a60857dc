"""Writes a fine-tuned generator as directories that plain diffusers loads, with a card."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gda.artifacts.cards import Family, GeneratorCard
from gda.artifacts.document import dump_document
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION, copy_parts, read_base_json, read_card, source_of, weights_digest
from gda.generator.weights.layout import INDEX, null_parts
from gda.generator.weights.verified import with_adapters
from gda.io.atomic import write_bytes


def export_generator(
    base: str,
    weights: Mapping[str, dict[str, torch.Tensor]],
    out: Path,
    *,
    prompts: dict[str, str],
    snapshot_digest: str,
    steps: dict[str, int],
    training: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    complete: Callable[[Path], None] | None = None,
    adapters: dict[str, str] | None = None,
) -> GeneratorCard:
    """Copy the base's layout to `out`, put the new weights of each stage in place, and write `generator.json` last.

    Stages without new weights keep the base's; `complete` may add files before the digest is computed. The licence is the base's:
    if it is not known, the card states `unknown`.
    """
    card = read_card(base)
    copy_parts(base, out)
    for stage, tensors in weights.items():
        if tensors:
            _replace_weights(out / network_folder(card.family, stage), tensors)
    if complete is not None:
        complete(out)
    strip_local_paths(out)
    new = GeneratorCard(
        family=card.family,
        digest=with_adapters(weights_digest(out), out, adapters or {}),
        adapters=adapters or {},
        base_digest=card.digest,
        snapshot_digest=snapshot_digest,
        prompts=prompts,
        licence=card.licence,
        num_train_steps=steps,
        source=source_of(base),
        training=training or {},
        metrics=metrics or {},
    )
    write_bytes(out / "README.md", _model_card(new, _without(out)).encode())
    write_bytes(out / "generator.json", dump_document(new))
    return new


def network_folder(family: Family, stage: str) -> str:
    """The folder of a stage's weights, relative to the generator's directory."""
    return f"{stage}/unet" if family == "pixel_cascade" else stage


def strip_local_paths(root: Path) -> None:
    """Remove `_name_or_path`, where diffusers writes an absolute path of the saving machine."""
    for path in root.rglob("*config.json"):
        content = json.loads(path.read_text("utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _replace_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    for old in folder.glob("*.safetensors*"):
        old.unlink(missing_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _without(out: Path) -> list[str]:
    """Parts that must be passed to plain diffusers as None, because it ignores null in the index."""
    index = read_base_json(out / INDEX) if (out / INDEX).is_file() else {}
    return [part for part in null_parts(index) if part.startswith(("text_encoder", "tokenizer"))]


def _model_card(card: GeneratorCard, without: list[str]) -> str:
    steps = "\n".join(f"| {stage} | {count} |" for stage, count in card.num_train_steps.items())
    prompts = "\n".join(f"| {name} | {prompt} |" for name, prompt in card.prompts.items())
    metrics = "\n".join(f"| {name} | {value:.6g} |" for name, value in card.metrics.items())
    settings = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in card.training.items())
    return f"""# Fine-tuned {card.family.replace("_", " ")}

| What | Value |
|---|---|
| base | {card.source} (digest {card.base_digest}) |
| fine-tuned on snapshot | {card.snapshot_digest} |
| licence of the base | {card.licence} |
| digest | {card.digest} |

Load it with diffusers: {_how_to_load(card, without)}.

| Stage | Optimizer steps |
|---|---|
{steps}

| Class | Prompt |
|---|---|
{prompts}

| Measured while it was fine-tuned | Value |
|---|---|
{metrics}

| Setting | Value |
|---|---|
{settings}
"""


def _how_to_load(card: GeneratorCard, without: list[str]) -> str:
    example = next(iter(card.adapters.items()), None)
    adapters = f", each with `load_lora_weights` of the class to generate, {example[0]}'s in `{example[1]}`" if example else ""
    if card.family == "pixel_cascade":
        pipelines = f'`IFPipeline.from_pretrained("{BASE}")`, then `IFSuperResolutionPipeline.from_pretrained("{SUPER_RESOLUTION}")`'
        # If its optional caption cleaning is installed, IF reads a token such as <crane-bird> as an HTML tag.
        plain = "; call them with `clean_caption=False`" if any("<" in prompt for prompt in card.prompts.values()) else ""
        return pipelines + adapters + plain
    options = "".join(f", {part}=None" for part in without)
    return f'`DiffusionPipeline.from_pretrained("."{options})`' + adapters
