"""Turns the results of fine-tuning into a generator: the weights, and the adapters or tokens next to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gda.artifacts.cards import Family, GeneratorCard
from gda.config.sections import FinetuneConfig
from gda.generator.families.opening import load_model
from gda.generator.finetuning.tokens import Tokens, add_tokens, export_tokens
from gda.generator.finetuning.train import StageResult
from gda.generator.weights.directory import read_card
from gda.generator.weights.export import export_generator, network_folder
from gda.generator.weights.lora import LORA_FILE, discarded, factor, write_lora

ADAPTERS = "adapters"  # folder of the adapters that each belong to one class
_RANK_OF_AVERAGES = 4  # times the trained rank, limit for an adapter's file: an average of products has a higher rank than each
_NOTED_SHARE = 0.01  # of the squared change: a note reports it if an adapter's file leaves out more


def export_results(
    base: str,
    results: Sequence[StageResult],
    out: Path,
    *,
    config: FinetuneConfig,
    training: dict[str, Any],
    prompts: dict[str, str],
    snapshot_digest: str,
    tokens: Tokens | None = None,
    seed: int = 0,
) -> tuple[GeneratorCard, list[str]]:
    """Write the fine-tuned generator, `base` with `results`, to `out`; returns its card and notes for the user.

    Adapters that belong to one class stay separate files next to the base's weights; everything else is merged into the weights.
    """
    notes: list[str] = []
    adapters: dict[str, str] = {}

    def complete(folder: Path) -> None:
        if config.method == "lora":
            adapters.update(_write_adapters(read_card(base).family, results, folder, rank=config.lora_rank, prompts=prompts, notes=notes))
        elif tokens is not None:
            model = load_model(base)
            add_tokens(model, tokens.names, seed=seed, initial=tokens.initial)
            export_tokens(folder, model, results[0].averaged)

    card = export_generator(
        base,
        {result.stage: result.weights for result in results if not result.class_name},
        out,
        prompts=prompts,
        snapshot_digest=snapshot_digest,
        steps={result.stage: result.step for result in results},
        training=training,
        metrics=measured(results),
        complete=complete,
        adapters=adapters,
    )
    return card, notes


def measured(results: Sequence[StageResult]) -> dict[str, float]:
    """Mean loss of the last 20 steps by label and, after evaluations, the score of the chosen weights."""
    losses = {f"{r.label}_loss": sum(r.losses[-20:]) / len(r.losses[-20:]) for r in results}
    return losses | {f"{r.label}_evaluation": min(score for step, score in r.scores if step == r.step) for r in results if r.scores}


def _write_adapters(
    family: Family, results: Sequence[StageResult], out: Path, *, rank: int, prompts: Mapping[str, str], notes: list[str]
) -> dict[str, str]:
    """Write one `pytorch_lora_weights.safetensors` per network, next to its pipeline or in its class's folder; returns class -> folder."""
    folders: dict[str, str] = {}
    for result in results:
        network = Path(network_folder(family, result.stage))
        factors = factor(result.averaged, rank=_RANK_OF_AVERAGES * rank)
        if result.class_name:
            folders[result.class_name] = f"{ADAPTERS}/{list(prompts).index(result.class_name):04d}"
        write_lora(out / folders.get(result.class_name, "") / network.parent, {network.name: factors})
        if (share := discarded(result.averaged, factors)) > _NOTED_SHARE:
            whole = "" if result.class_name else "; the weights next to it have all of it"
            notes.append(f"{result.label}: {LORA_FILE} leaves out {share:.1%} of the averaged change{whole}")
    return folders
