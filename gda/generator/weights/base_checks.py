"""Checks that a base's configurations are supported by its family, before anything is loaded, trained or sampled.

Without a check here, a noise schedule or statistic that training does not support would silently give wrong results.
"""

import os
from pathlib import Path
from typing import Any

from gda.generator.weights.config_fields import Fields
from gda.generator.weights.json_files import read_config_object
from gda.generator.weights.layout import BASE, SUPER_RESOLUTION, UPSCALER, Files, null_parts, unused_parts
from gda.generator.weights.schedule_checks import check_diffusion, check_flow

_CLIP, _T5 = ("CLIPTextModel", "CLIPTextModelWithProjection"), ("T5EncoderModel",)
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
_CLASSES: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": (*_CLIP, *_T5),
    "text_encoder_2": _CLIP,
    "text_encoder_3": _T5,
}
_MODEL_TYPES = {
    "CLIPTextModel": ("clip_text_model", "clip"),
    "CLIPTextModelWithProjection": ("clip_text_model", "clip"),
    "T5EncoderModel": ("t5",),
}
# Parts that a pipeline needs; every other part may be `[null, null]`.
_NEEDED = {
    "IFPipeline": {"unet", "scheduler", "text_encoder", "tokenizer"},
    "IFSuperResolutionPipeline": {"unet", "scheduler", "image_noising_scheduler"},
    "StableDiffusionPipeline": {"unet", "vae", "scheduler", "text_encoder", "tokenizer"},
    "StableDiffusionXLPipeline": {"unet", "vae", "scheduler", "text_encoder_2", "tokenizer_2"},
    "StableDiffusion3Pipeline": {"transformer", "vae", "scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"},
    "StableDiffusionUpscalePipeline": {"unet", "vae", "scheduler", "low_res_scheduler", "text_encoder", "tokenizer"},
}
_STAGE_PIPELINES = {BASE: "IFPipeline", SUPER_RESOLUTION: "IFSuperResolutionPipeline", UPSCALER: "StableDiffusionUpscalePipeline"}
_NO_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
_MOST_LEVELS = 64


def check_base(files: Files) -> None:
    """Raises `DataError` naming file, field, value and what is accepted, for the first unsupported configuration."""
    for path, content in files.indexes().items():
        stage = os.path.dirname(path)
        base = _Base(files, stage, Fields(where=files.where(path), content=content))
        base.check_index(_STAGE_PIPELINES.get(stage))
        base.check_own_code()
        base.check_pipeline()


def square_side(config: Path) -> int:
    """`sample_size` of a denoiser's `config.json`: the side of its square input. Raises `DataError` for a pair or anything else."""
    return _side(Fields(where=str(config), content=read_config_object(config)))


class _Base:
    """One pipeline of a base: `stage` is its folder, empty at the top."""

    def __init__(self, files: Files, stage: str, index: Fields) -> None:
        self.files, self.index = files, index
        self.prefix = f"{stage}/" if stage else ""
        self.kind = str(index.content.get("_class_name"))
        self.parts: dict[str, str] = {}  # name -> class

    def config(self, part: str, file: str = "config.json") -> Fields:
        path = f"{self.prefix}{part}/{file}"
        if path not in self.files.used:
            raise self.index.refuse(part, f"a part with {file}, which {part}/ lacks")
        return Fields(where=self.files.where(path), content=read_config_object(self.files.path(path)))

    def check_index(self, expected: str | None) -> None:
        """Each part is null or of a supported class."""
        index = self.index
        if expected is not None:
            index.one_of("_class_name", (expected,))
        needed = _NEEDED[self.kind]
        null, unused = null_parts(index.content), unused_parts(index.content)
        for part, value in index.content.items():
            if part.startswith("_") or part in unused or part in null:
                continue
            if isinstance(value, list):
                self.parts[part] = self._class(part, value)
            elif part in needed | _CLASSES.keys():
                raise index.refuse(part, "a list of library and class, or of two nulls")
        for part in sorted(needed - self.parts.keys()):
            raise index.refuse(part, f"a part of {self.kind}")
        for encoder in (p for p in self.parts if p.startswith(("text_encoder", "tokenizer"))):
            other = (
                encoder.replace("text_encoder", "tokenizer") if encoder.startswith("text") else encoder.replace("tokenizer", "text_encoder")
            )
            if other not in self.parts:
                raise index.refuse(other, f"present if {encoder} is, or both null")
        if self.kind == "StableDiffusionXLPipeline":
            index.one_of("force_zeros_for_empty_prompt", (True, False), True)

    def _class(self, part: str, value: list[Any]) -> str:
        library = "transformers" if part.startswith(("text_encoder", "tokenizer")) else "diffusers"
        known = _TOKENIZERS if part.startswith("tokenizer") else _CLASSES.get(part)
        accepted = f"[{library}, {' or '.join(known) if known else 'a scheduler'}]" if known or "scheduler" in part else None
        if accepted is None:
            raise self.index.refuse(part, f"left out: {self.kind} has no such part")
        right = len(value) == 2 and all(isinstance(word, str) for word in value) and value[0] == library
        if not right or (known and value[1] not in known):
            raise self.index.refuse(part, accepted)
        return str(value[1])

    def check_own_code(self) -> None:
        """No part names code, an external adapter, or quantised weights."""
        for plain in sorted(self.files.used):
            part, _, file = plain.removeprefix(self.prefix).rpartition("/")
            if not plain.startswith(self.prefix) or part not in self.parts:
                continue
            if file == "adapter_config.json":
                raise self.index.refuse(part, "whole weights: merge the adapter of its adapter_config.json into them")
            if file.endswith("config.json"):
                config = Fields(where=self.files.where(plain), content=read_config_object(self.files.path(plain)))
                config.require_absent("auto_map", reason="code that a directory brings is never run")
                config.require_absent("quantization_config", reason="quantised weights cannot be fine-tuned")
                config.require_absent("custom_pipelines", reason="code that a directory brings is never run")

    def check_pipeline(self) -> None:
        """The configurations of the parts are supported and agree with each other."""
        for part, name in self.parts.items():
            if "scheduler" in part:
                schedule = self.config(part, "scheduler_config.json")
                (check_flow if self.kind == "StableDiffusion3Pipeline" else check_diffusion)(schedule, latent=self.kind in _LATENT)
            elif part.startswith("text_encoder"):
                self._check_encoder(part, name)
            elif not part.startswith("tokenizer"):
                self.config(part).one_of("_class_name", (name,), name)
        denoiser = self.config("transformer" if "transformer" in self.parts else "unet")
        _side(denoiser)
        _check_levels(denoiser)
        if self.kind in _LATENT or self.kind == "StableDiffusion3Pipeline":
            self._check_latents(denoiser)
        if self.kind in _LATENT:
            self._check_conditions(denoiser)
        elif self.kind == "StableDiffusion3Pipeline":
            self._check_flow_conditions(denoiser)
        elif self.kind == "IFSuperResolutionPipeline":
            denoiser.require_equal("in_channels", 6, "of the noisy and of the small image", 4)
        elif self.kind == "IFPipeline":
            denoiser.require_equal("in_channels", 3, "of an RGB image", 4)

    def _check_encoder(self, part: str, name: str) -> None:
        config = self.config(part)
        if "model_type" in config.content:
            config.one_of("model_type", _MODEL_TYPES[name])
        if name in _T5:
            for field, default in (("d_model", 512), ("d_kv", 64), ("d_ff", 2048), ("num_heads", 8), ("vocab_size", 32128)):
                config.whole(field, default)
            config.whole("num_layers", 6, high=1000)
            return
        for field, default in (("hidden_size", 512), ("intermediate_size", 2048), ("num_attention_heads", 8), ("vocab_size", 49408)):
            config.whole(field, default)
        config.whole("num_hidden_layers", 12, high=1000)
        positions = config.whole("max_position_embeddings", 77)
        tokenizer = part.replace("text_encoder", "tokenizer")
        if f"{self.prefix}{tokenizer}/tokenizer_config.json" in self.files.used:
            tokenizer_config = self.config(tokenizer, "tokenizer_config.json")
            # Prompts are padded to this length, or to 77 in Stable Diffusion 3.
            tokenizer_config.whole("model_max_length", positions, high=positions)

    def _check_latents(self, denoiser: Fields) -> None:
        vae = self.config("vae")
        _check_levels(vae)
        channels = vae.whole("latent_channels", 4)
        denoiser.require_equal("in_channels", channels, "the latent_channels of the autoencoder", 4 if self.kind in _LATENT else 16)
        if denoiser.content.get("out_channels") is not None or self.kind in _LATENT:
            denoiser.require_equal("out_channels", channels, "the latent_channels of the autoencoder", 4)
        vae.number("scaling_factor", 0.18215, above=0)
        if self.kind == "StableDiffusion3Pipeline":
            vae.number("shift_factor")
        elif vae.content.get("shift_factor") not in (None, 0):
            raise vae.refuse("shift_factor", f"null or 0: {self.kind} does not shift latents")
        if self.kind != "StableDiffusionXLPipeline":
            vae.require_absent("latents_mean", "latents_std", reason=f"{self.kind} does not use it")
            return
        mean, deviation = vae.numbers("latents_mean", channels), vae.numbers("latents_std", channels, above=0)
        if (mean is None) != (deviation is None):
            raise vae.refuse(
                "latents_mean" if mean is None else "latents_std", "given with the other of latents_mean and latents_std, or both null"
            )

    def _check_conditions(self, unet: Fields) -> None:
        unet.require_absent(*_NO_CONDITIONS, reason=f"{self.kind} has no such input")
        xl = self.kind == "StableDiffusionXLPipeline"
        unet.one_of("addition_embed_type", ("text_time",) if xl else (None,))
        widths = [self._width(part) for part in sorted(self.parts) if part.startswith("text_encoder")]
        width = unet.content.get("cross_attention_dim", 1280)
        given = set(width) if isinstance(width, list) and all(type(w) is int for w in width) else {width}
        if given != {sum(widths)}:
            raise unet.refuse("cross_attention_dim", f"{sum(widths)}, the width of the text encoders", width)
        if xl:
            pooled = self.config("text_encoder_2").whole("projection_dim", 512)
            expected = pooled + 6 * unet.whole("addition_time_embed_dim")
            unet.require_equal("projection_class_embeddings_input_dim", expected, "of the pooled text and six sizes")

    def _check_flow_conditions(self, transformer: Fields) -> None:
        pooled = sum(self.config(part).whole("projection_dim", 512) for part in ("text_encoder", "text_encoder_2"))
        transformer.require_equal("pooled_projection_dim", pooled, "the projections of the text encoders", 2048)
        if "text_encoder_3" in self.parts:
            width = self._width("text_encoder_3")
            transformer.require_equal("joint_attention_dim", width, "the width of text_encoder_3", 4096)
        transformer.whole("num_layers", 18, high=1000)

    def _width(self, part: str) -> int:
        return self.config(part).whole(*(("d_model", 512) if self.parts[part] in _T5 else ("hidden_size", 512)))


_LATENT = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def _side(config: Fields) -> int:
    side = config.content.get("sample_size")
    if type(side) is not int or not 1 <= side <= 65536:
        raise config.refuse("sample_size", "one whole number, the side of square images")
    return side


def _check_levels(config: Fields) -> None:
    """The widths of the levels and their numbers of layers are within limits that can be built."""
    widths = config.content.get("block_out_channels")
    if widths is not None and not (
        isinstance(widths, list) and 1 <= len(widths) <= 16 and all(type(w) is int and 0 < w < 10**5 for w in widths)
    ):
        raise config.refuse("block_out_channels", "a list of whole numbers above 0")
    layers = config.content.get("layers_per_block", 1)
    each = layers if isinstance(layers, list) else [layers]
    if not all(type(count) is int and 1 <= count <= _MOST_LEVELS for count in each):
        raise config.refuse("layers_per_block", f"a whole number from 1 to {_MOST_LEVELS}, or a list of them")
