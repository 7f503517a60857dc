"""Section `finetune` of the configuration, and the part of it that a fingerprint records."""

from typing import Any, Literal

from pydantic import Field

from gda.config.base import Fraction, GuidanceScale, Section

# These change no weight, or enter the fingerprint as a digest of their content.
_NOT_IN_FINGERPRINT = frozenset({"base", "force_base", "prompt_file", "checkpointing_steps", "checkpoints_total_limit", "model_name"})


class FinetuneConfig(Section):
    base: str = Field(
        "demo://glyphs", description="base weights: demo://glyphs, a local directory or a hub id, ORG/NAME[@REVISION][:VARIANT]"
    )
    force_base: str | None = Field(
        None,
        description="base that is used although it cannot know such images, such as demo://glyphs for photographs; null refuses it",
    )
    method: Literal["full", "lora", "textual_inversion"] = Field(
        "full", description="full trains every weight, lora low-rank adapters, textual_inversion one new token per class"
    )
    lora_rank: int = Field(16, ge=1, le=4096, description="rank of the adapters")
    lora_alpha: float | None = Field(None, gt=0.0, description="adapters are scaled by alpha / rank; null means alpha = rank")
    lora_target_modules: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="layers that get an adapter, by the end of their name"
    )
    lora_scope: Literal["dataset", "class"] = Field(
        "dataset", description="dataset trains one set of adapters for all classes, class trains one set per class"
    )
    num_train_steps: int = Field(300, ge=1, le=10_000_000, description="optimizer steps of the base stage")
    sr_num_train_steps: int = Field(
        200, ge=0, le=10_000_000, description="optimizer steps of the super-resolution stage; 0 keeps it frozen"
    )
    batch_size: int = Field(64, ge=1, le=65536, description="images per optimizer step, over all processes")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=65536, description="number of parts in which a process computes its share of a batch"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, which takes less memory and more time"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="precision of the network's passes; weights stay float32")
    compile: bool = Field(False, description="compile the network with torch.compile")
    parallelism: Literal["ddp", "fsdp"] = Field(
        "ddp", description="how several processes hold a network: ddp keeps a copy in each, fsdp shards it"
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw", description="optimizer; adamw_8bit needs the package bitsandbytes"
    )
    learning_rate: float = Field(5e-4, gt=0.0, le=1.0, description="peak learning rate")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="schedule of the learning rate after the warm-up; cosine ends at 2% of the peak, linear at 0"
    )
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0.0, le=10.0, description="decoupled weight decay of the optimizer")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradients are clipped to this norm")
    snr_gamma: float | None = Field(
        None, gt=0.0, description="gamma of min-SNR weighting, commonly 5; null weights all noise levels equally"
    )
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0, description="decay of averaged weights, per step")
    weight_interpolation: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="interpolation from the base's weights (0) to the fine-tuned ones (1); values in between keep more of the base's "
        "variety in the images (WiSE-FT, Wortsman et al. 2022)",
    )
    ema_snapshot_steps: int | None = Field(
        None, ge=1, description="steps between the snapshots from which gda ema makes any other average afterwards; null keeps none"
    )
    prompt_dropout: Fraction = Field(0.1, description="share of prompts replaced by the empty prompt, which guidance needs")
    prompt_template: str = Field("{class_name}", description="prompt of a class; {class_name} is replaced by its name")
    prompt_file: str | None = Field(
        None, description="YAML or JSON file of class name -> prompt, or of class name -> names from narrow to broad"
    )
    class_balanced: bool = Field(False, description="sample every class equally often, however many images it has")
    horizontal_flip: bool = Field(
        False, description="mirror training images at random; leave it off where a mirrored image means something else"
    )
    jitter: Fraction | None = Field(
        None, description="strength of random affine jitter of training images, 0 is off; null means 0.5 in pixel space, 0 in latent space"
    )
    evaluation_steps: int | None = Field(
        None, ge=1, description="steps between evaluations, the best of which gives the final weights; null keeps the last weights"
    )
    evaluation_metric: Literal["fid", "kid"] = Field("fid", description="distance between sampled images and the held-out share of train")
    evaluation_fraction: float = Field(0.2, gt=0.0, lt=0.9, description="share of train held out for evaluations, class by class")
    evaluation_images_per_class: int = Field(20, ge=2, description="images per class sampled at each evaluation")
    evaluation_guidance_scale: GuidanceScale = Field(1.0, description="guidance scale of the images of an evaluation, 1 is off")
    evaluation_num_inference_steps: int = Field(8, ge=1, le=1000, description="denoising steps of the images of an evaluation")
    checkpointing_steps: int = Field(50, ge=1, description="steps between resumable checkpoints")
    checkpoints_total_limit: int = Field(2, ge=1, le=100, description="number of checkpoints kept")
    model_name: str | None = Field("gda-generator", min_length=1, description="registered model name in MLflow; null registers nothing")

    def decided(self) -> dict[str, Any]:
        """What a fingerprint and a generator's card record of this section, as plain JSON types."""
        return self.recorded(_NOT_IN_FINGERPRINT)
