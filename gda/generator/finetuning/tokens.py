"""Textual inversion (Gal et al. 2022): a learned token per class, for part numbers and other names that mean nothing to a text encoder.

Only one embedding row per token in each text encoder is trained; the rest of the model is frozen.
"""

import json
import re
import shutil
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gda.artifacts.snapshot import ClassInfo
from gda.config.sections import FinetuneConfig
from gda.errors import ConfigError, DataError
from gda.generator.families.protocol import Model, Text, rows
from gda.generator.planning.prompts import class_prompts
from gda.generator.weights.directory import BASE
from gda.runtime.process_group import ProcessGroup
from gda.runtime.rng import Name
from gda.runtime.torch_rng import torch_stream

EMBEDS = "learned_embeds"  # folder of the exported tokens, one file per token, for pipelines with one text encoder
_ROLES = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
_TABLES = ("token_embedding.weight", "shared.weight", "embed_tokens.weight")  # names of the input embedding in CLIP's and T5's files
_LONGEST = 64  # letters of a token, which becomes a file name
_NOISE = 0.1  # norm of the noise on an initial row, relative to the row's norm
_WINDOW = 77  # tokens: no family reads fewer of a prompt
_LOADED = {"is_local", "local_files_only"}  # settings of loading, not of the tokenizer itself
_CLIP, _OLD_END = "clip_text_model", 2


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens to learn: class name -> token, and class name -> the words that initialise it."""

    names: dict[str, str]
    initial: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """One text encoder of a model and its tokenizer; `role` is the encoder's name in the pipeline."""

    role: str
    tokenizer: Any
    encoder: Any


class TokenTable(nn.Module):
    """An encoder's input embedding: ids from `first` on are looked up in `learned`, all others in the frozen table.

    `learned`, float32 [n, d], is in units of `scale`, the table's median row norm: it differs widely between the encoders of a
    pipeline, but the steps of an optimizer such as Adam do not scale with the parameters.
    """

    def __init__(self, frozen: nn.Embedding, first: int, start: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.first, self.scale = first, scale
        self.learned = nn.Parameter(start)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        count, place = len(self.learned), ids - self.first
        is_new = (place >= 0) & (place < count)
        known = self.frozen(ids.masked_fill(is_new, 0))
        # Without new ids the result still depends on `learned`, so that every process has a gradient to exchange, if only zeros.
        new = F.embedding(place.clamp(0, count - 1), self.learned) * self.scale
        return torch.where(is_new[..., None], new.to(known.dtype), known)


@dataclass(kw_only=True)
class Inversion:
    """The `Method` that trains only the tokens' rows; gradients reach them through the frozen network and its text states.

    The rows' norm is not constrained: at large learning rates it grows to a few times the typical norm without harming the loss.
    """

    network: nn.Module
    model: Model
    tokens: dict[str, str]
    initial: dict[str, str]
    seed: int

    def parameters(self) -> dict[str, nn.Parameter]:
        return {role: table.learned for role, table in token_tables(self.model).items()}

    def values(self) -> dict[str, torch.Tensor]:
        return {role: parameter.detach() for role, parameter in self.parameters().items()}

    def snapshot_values(self) -> dict[str, torch.Tensor]:
        """Empty: only networks have snapshots for averaging."""
        return {}

    def text(self, prompts: Sequence[str]) -> Text:
        """With gradient, and in float32 like the other methods' text states: reduced precision applies only to the network."""
        unique = sorted(set(prompts))
        device = next(iter(self.parameters().values())).device
        with torch.autocast(device.type, enabled=False):
            encoded = self.model.encode(unique)
        row = {prompt: i for i, prompt in enumerate(unique)}
        return rows(encoded, [row[prompt] for prompt in prompts])

    def exchange(self, world: ProcessGroup) -> None:
        world.average(parameter.grad for parameter in self.parameters().values() if parameter.grad is not None)

    def weights(self, averaged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Empty: the network stays the base's. `export_tokens` writes the learned rows."""
        return {}

    def install(self, model: Model, averaged: Mapping[str, torch.Tensor]) -> None:
        if not token_tables(model):
            add_tokens(model, self.tokens, seed=self.seed, initial=self.initial)
        put_rows(model, averaged)


def make_inversion(
    model: Model, stage: str, config: FinetuneConfig, *, tokens: dict[str, str], initial: dict[str, str], seed: int
) -> Inversion:
    """Add `tokens` (class name -> token) to `model` and train them through `stage`'s network, which the caller has prepared.

    Raises `ConfigError` for any stage but the first, whose text encoder the others share, and for a template so long that the
    tokenizer cuts a token off.
    """
    if stage != model.stages[0]:
        raise ConfigError(f"finetune.method: textual_inversion trains tokens with the {model.stages[0]} stage alone, got {stage}")
    add_tokens(model, tokens, seed=seed, initial=initial)
    _require_read(model, tokens, token_prompts(tokens, config))
    return Inversion(network=model.network(stage).requires_grad_(False), model=model, tokens=tokens, initial=initial, seed=seed)


def text_parts(model: Model) -> list[TextPart]:
    """The loaded text encoders of a model, in the pipeline's order; a cascade has one, shared by all its stages."""
    holder = getattr(model, "pipeline", model)
    found = [(role, getattr(holder, tokenizer, None), getattr(holder, role, None)) for role, tokenizer in _ROLES.items()]
    return [TextPart(role=role, tokenizer=tokenizer, encoder=encoder) for role, tokenizer, encoder in found if encoder is not None]


def token_tables(model: Model) -> dict[str, TokenTable]:
    """The tables that `add_tokens` installed, by role; empty before."""
    tables = {part.role: part.encoder.get_input_embeddings() for part in text_parts(model)}
    return {role: table for role, table in tables.items() if isinstance(table, TokenTable)}


def class_tokens(classes: Sequence[ClassInfo], model: Model) -> dict[str, str]:
    """Class name -> token such as `<crane-bird>`: ASCII, lower-case, unique and unknown to all tokenizers of the model.

    The class's index in `classes` is appended if its name has no ASCII letter or digit, or if the token is taken.
    """
    taken = {word for part in text_parts(model) for word in part.tokenizer.get_vocab()}
    tokens: dict[str, str] = {}
    for index, info in enumerate(classes):
        slug = _slug(info.name) or f"class-{index}"
        while f"<{slug}>" in taken:
            slug = f"{slug}-{index}"
        tokens[info.name] = f"<{slug}>"
        taken.add(f"<{slug}>")
    return tokens


def token_prompts(tokens: Mapping[str, str], settings: FinetuneConfig) -> dict[str, str]:
    """Class name -> prompt, by `finetune.prompt_template` alone. Raises `ConfigError` for a template without `{class_name}`."""
    called = [ClassInfo(name=name, prompt_name=token) for name, token in tokens.items()]
    return class_prompts(called, settings.model_copy(update={"prompt_file": None}))


def add_tokens(model: Model, tokens: Mapping[str, str], *, seed: int, initial: Mapping[str, str]) -> None:
    """Add `tokens` (class name -> token) to every tokenizer, and for each encoder a `TokenTable` with rows to learn.

    A row starts as the mean embedding of the known words in `initial` (class name -> words) plus a little noise, scaled to the median
    row norm of the encoder; without known words it is noise alone. Raises `DataError` for a token that a tokenizer already has.
    """
    for part in text_parts(model):
        table = part.encoder.get_input_embeddings()
        known = table.weight[: len(part.tokenizer)].detach().float().cpu()  # T5's table is longer than its vocabulary
        scale = float(known.norm(dim=1).median())
        start = [_initial_row(part, known, initial[name], (seed, part.role, token)) for name, token in tokens.items()]
        first = _extend(part.tokenizer, list(tokens.values()), f"{model.path}: {part.role}")
        part.encoder.set_input_embeddings(TokenTable(table, first, torch.stack(start).to(table.weight.device), scale))
        _find_real_end(part)


@torch.no_grad()
def put_rows(model: Model, averaged: Mapping[str, torch.Tensor]) -> None:
    """Copy learned rows, by role as returned by `Inversion.values`, into a model with tokens."""
    for role, table in token_tables(model).items():
        table.learned.copy_(averaged[role])


def export_tokens(out: Path, model: Model, averaged: Mapping[str, torch.Tensor]) -> None:
    """Add the tokens to the vocabulary of the generator at `out`, a copy of `model`'s base, so that plain diffusers can use them.

    `model` must contain the tokens; `averaged` is by role, as returned by `Inversion.values`. This rewrites the tokenizers and the text
    encoders' input embeddings, whose dtype stays. Pipelines with one CLIP encoder also get `learned_embeds/`, for use with the base and
    `load_textual_inversion`. Equal rows give equal bytes. Call this before the generator's digest is computed.

    `IFPipeline` must be called with `clean_caption=False`: its cleaning takes `<crane-bird>` for an HTML tag and drops it.
    """
    root = out / BASE if (out / BASE).is_dir() else out
    tables = token_tables(model)
    for part in text_parts(model):
        table = tables[part.role]
        learned = averaged[part.role].float().cpu() * table.scale
        _replace_tokenizer(root / _ROLES[part.role], part.tokenizer)
        _replace_table(root / part.role, table.first, learned, end=_real_end(part))
        if len(tables) == 1 and hasattr(getattr(model, "pipeline", None), "load_textual_inversion"):
            _write_embeds(out / EMBEDS, part.tokenizer.convert_ids_to_tokens(range(table.first, table.first + len(learned))), learned)


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_LONGEST].strip("-")


def _initial_row(part: TextPart, known: torch.Tensor, words: str, stream: Sequence[Name]) -> torch.Tensor:
    """Initial direction of a token's row, float32 [d] of norm 1."""
    # IF lower-cases prompts, and so does CLIP's tokenizer.
    ids = part.tokenizer(words.lower().strip(), add_special_tokens=False).input_ids
    # Unknown tokens, and the space that T5 puts before any word, carry no meaning.
    ids = [i for i in ids if part.tokenizer.decode([i], skip_special_tokens=True).strip()]
    noise = F.normalize(torch.randn(known.shape[1], generator=torch_stream("tokens", *stream)), dim=0)
    if not ids:
        return noise
    return F.normalize(F.normalize(known[ids].mean(0), dim=0) + _NOISE * noise, dim=0)


def _extend(tokenizer: Any, tokens: list[str], where: str) -> int:
    """Add the tokens; returns the id of the first, which the others follow."""
    known = tokenizer.get_vocab()
    if taken := [token for token in tokens if token in known]:
        raise DataError(f"{where}: its tokenizer already knows {', '.join(taken)}, which were to be new tokens")
    tokenizer.add_tokens(tokens)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    first: int = ids[0]
    return first


def _real_end(part: TextPart) -> int | None:
    """The end token's id if the encoder's configuration must be corrected, else None.

    A CLIP encoder with 2 in its configuration, as in all of Stable Diffusion's, takes the highest id of a prompt as its end; the id of a
    new token would be higher.
    """
    config = part.encoder.config
    if config.model_type == _CLIP and config.eos_token_id in (_OLD_END, part.tokenizer.eos_token_id):
        return int(part.tokenizer.eos_token_id)
    return None


def _find_real_end(part: TextPart) -> None:
    end = _real_end(part)
    if end is None:
        return
    part.encoder.config.eos_token_id = end
    for module in part.encoder.modules():  # the pooling module has copied it from the configuration
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end


def _require_read(model: Model, tokens: Mapping[str, str], prompts: Mapping[str, str]) -> None:
    for part in text_parts(model):
        for name, token in tokens.items():
            ids = part.tokenizer(prompts[name].lower(), truncation=True, max_length=_WINDOW).input_ids
            if part.tokenizer.convert_tokens_to_ids(token) not in ids:
                raise ConfigError(f"finetune.prompt_template: {token} of class {name!r} is not among the {_WINDOW} tokens that are read")


def _replace_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Delete the old tokenizer completely: some versions would read a leftover vocabulary and split the new tokens."""
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)
    _change_json(folder / "tokenizer_config.json", dict.fromkeys(_LOADED))


def _replace_table(folder: Path, first: int, learned: torch.Tensor, *, end: int | None) -> None:
    """Write the rows into the encoder's files at the ids from `first` on, and the table's new length into its configuration."""
    for pickled in folder.glob("*.bin*"):
        pickled.unlink()
    files = sorted(folder.glob("*.safetensors"))
    lengths = {length for file in files if (length := _rewrite(file, first, learned))}
    if len(lengths) != 1:
        raise DataError(f"{folder}: expected one input embedding, named {' or '.join(_TABLES)}, found {len(lengths)}")
    _change_json(folder / "config.json", {"vocab_size": lengths.pop()} | ({} if end is None else {"eos_token_id": end}))
    for index in folder.glob("*.safetensors.index.json"):
        _change_json(index, {"metadata": {"total_size": sum(_size(file) for file in files)}})


def _rewrite(path: Path, first: int, learned: torch.Tensor) -> int | None:
    """Write the rows into the table in a weights file; returns the table's length, or None if the file has no table."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.endswith(_TABLES)]  # noqa: SIM118
    if not names:
        return None
    tensors = load_file(path)
    for name in names:
        tensors[name] = _with_rows(tensors[name], first, learned)
    save_file(tensors, path, metadata={"format": "pt"})
    return len(tensors[names[0]])


def _with_rows(table: torch.Tensor, first: int, learned: torch.Tensor) -> torch.Tensor:
    longer = table.new_zeros(max(len(table), first + len(learned)), table.shape[1])
    longer[: len(table)] = table
    longer[first : first + len(learned)] = learned
    return longer


def _size(file: Path) -> int:
    """Bytes of the tensors in a weights file: everything after the header, whose length the first 8 bytes hold."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


def _change_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Set fields of a JSON object; None removes one."""
    content = json.loads(path.read_text("utf-8")) | changes
    content = {key: value for key, value in content.items() if value is not None or key not in changes}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_embeds(folder: Path, tokens: Collection[str], learned: torch.Tensor) -> None:
    """One token per file: diffusers accepts no more."""
    folder.mkdir()
    for token, row in zip(tokens, learned, strict=True):
        save_file({token: row.clone()}, folder / f"{token[1:-1]}.safetensors", metadata={"format": "pt"})
