"""The networks that sampling runs for every image, read from a generator's configurations without loading weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gda.errors import DataError
from gda.generator.families.cascade import TOKENS
from gda.generator.weights.base_checks import square_side
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION, UPSCALER, read_base_json
from gda.runtime.torch_rng import torch_stream

_T5_TOKENS = 256  # that Stable Diffusion 3's pipeline appends to CLIP's, with and without a T5 encoder


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: its `folder` holds `config.json`, its inputs have `side` pixels (or latent pixels) and `tokens` of text.

    A denoiser has the name of its stage; `scheduler` is the folder of its scheduler's configuration.
    """

    name: str
    role: Literal["denoise", "decode", "encode"]
    folder: Path
    side: int
    tokens: int = 0
    scheduler: Path | None = None

    def build_meta(self) -> nn.Module:
        """The network without weights, on the meta device. Raises `DataError` for a configuration that diffusers does not support."""
        import diffusers

        config = read_base_json(self.folder / "config.json")
        try:
            with torch.device("meta"):
                network: nn.Module = getattr(diffusers, str(config["_class_name"])).from_config(config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.folder / 'config.json'}: no network can be built from it ({str(error).splitlines()[0]})") from None
        return network.eval()

    @torch.inference_mode()
    def run(self, network: Any, batch: int) -> None:
        """Run one pass of `batch` rows of noise through `network`, on its device and in its precision."""
        if self.role == "denoise":
            network(**_denoiser_inputs(network, batch, self.side, self.tokens))
        elif self.role == "decode":
            network.decode(_noise(network, batch, network.config.latent_channels, self.side, self.side))
        else:
            network.encode(_noise(network, batch, network.config.in_channels, self.side, self.side))


def networks_of(path: Path, *, from_images: bool = False) -> tuple[Network, ...]:
    """The networks of the generator at `path` in sampling order; with `from_images`, latent families also include the encoder.

    Excludes text encoders, which run once per prompt, not per image. Raises `DataError` for a damaged configuration.
    """
    if (path / BASE).is_dir():
        return _of_cascade(path)
    name = "transformer" if (path / "transformer").is_dir() else "unet"
    side = _side(path / name)
    extra = _T5_TOKENS if name == "transformer" else 0
    denoiser = Network(
        name=name, role="denoise", folder=path / name, side=side, tokens=_clip_tokens(path) + extra, scheduler=path / "scheduler"
    )
    decoder = Network(name="decoder", role="decode", folder=path / "vae", side=side)
    # An autoencoder halves the side at each level except the last.
    pixels = side * 2 ** (len(read_base_json(path / "vae" / "config.json")["block_out_channels"]) - 1)
    encoder = Network(name="encoder", role="encode", folder=path / "vae", side=pixels)
    return (encoder, denoiser, decoder) if from_images else (denoiser, decoder)


def loaded_network(model: Any, network: Network) -> Any:
    """The network of a loaded `Model` that `network` describes."""
    if network.name in model.stages:
        return model.network(network.name)
    pipeline = model.upscaler.pipeline if network.name.startswith(UPSCALER) else model.pipeline
    return pipeline.unet if network.role == "denoise" else pipeline.vae


def _of_cascade(path: Path) -> tuple[Network, ...]:
    stages = [stage for stage in (BASE, SUPER_RESOLUTION) if (path / stage).is_dir()]
    found = [
        Network(
            name=stage,
            role="denoise",
            folder=path / stage / "unet",
            side=_side(path / stage / "unet"),
            tokens=TOKENS,
            scheduler=path / stage / "scheduler",
        )
        for stage in stages
    ]
    upscaler, side = path / UPSCALER, found[-1].side
    if upscaler.is_dir():
        # The upscaler's latents have the size of its input image.
        tokens = _clip_tokens(upscaler)
        found += [
            Network(name=UPSCALER, role="denoise", folder=upscaler / "unet", side=side, tokens=tokens, scheduler=upscaler / "scheduler"),
            Network(name=f"{UPSCALER} decoder", role="decode", folder=upscaler / "vae", side=side),
        ]
    return tuple(found)


def _denoiser_inputs(network: Any, batch: int, side: int, tokens: int) -> dict[str, Any]:
    config = network.config
    image = _noise(network, batch, config.in_channels, side, side)
    if "joint_attention_dim" in config:
        return {
            "hidden_states": image,
            "timestep": torch.zeros(batch, device=network.device),
            "encoder_hidden_states": _noise(network, batch, tokens, config.joint_attention_dim),
            "pooled_projections": _noise(network, batch, config.pooled_projection_dim),
        }
    width = config.encoder_hid_dim or config.cross_attention_dim
    given: dict[str, Any] = {
        "sample": image,
        "timestep": torch.zeros((), device=network.device),
        "encoder_hidden_states": _noise(network, batch, tokens, width if isinstance(width, int) else width[0]),
    }
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        given["class_labels"] = torch.zeros(batch, dtype=torch.int64, device=network.device)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {"text_embeds": _noise(network, batch, pooled), "time_ids": _noise(network, batch, 6)}
    return given


def _noise(network: Any, *shape: int) -> torch.Tensor:
    """Standard normal input, as in sampling: devices compute faster on zeros, which would distort the timing."""
    return torch.randn(shape, generator=torch_stream("timing")).to(network.device, network.dtype)


def _side(folder: Path) -> int:
    return square_side(folder / "config.json")


def _clip_tokens(path: Path) -> int:
    config = path / "text_encoder" / "config.json"
    return int(read_base_json(config).get("max_position_embeddings", TOKENS)) if config.is_file() else TOKENS
