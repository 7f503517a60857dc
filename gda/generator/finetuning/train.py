"""Fine-tunes one network of a generator, resumably: all random numbers are functions of (seed, stage, step, position in the batch)."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gda.config.sections import FinetuneConfig
from gda.errors import DataError, MissingError
from gda.generator.families.opening import load_model
from gda.generator.families.protocol import Model
from gda.generator.finetuning.checkpoints import Checkpoints
from gda.generator.finetuning.evaluation import Evaluation, Evaluator, best_step
from gda.generator.finetuning.methods import make_method
from gda.generator.finetuning.order import Order
from gda.generator.finetuning.prepared import Prepared, PreparedSource, Texts
from gda.generator.finetuning.prompt_dropout import drop_prompts
from gda.generator.finetuning.run import TrainingRun
from gda.generator.finetuning.tokens import Tokens
from gda.generator.weights.posthoc import write_snapshot
from gda.runtime.process_group import ProcessGroup
from gda.runtime.progress import tick
from gda.runtime.rng import stream_seed
from gda.runtime.torch_rng import RandomStreams

EVALUATIONS, SNAPSHOTS = "evaluations", "ema"


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """Fine-tune `stage` of the generator at `base` on `source`, with one label, prompt and key per image.

    `class_name` is set if all images are of one class, which gets its own adapter. `work` is the folder of this job's checkpoints,
    pictures and snapshots; `resume_at` ignores checkpoints of later steps.
    """

    stage: str
    base: str
    source: PreparedSource
    labels: torch.Tensor
    prompts: tuple[str, ...]
    keys: tuple[str, ...]
    config: FinetuneConfig
    num_train_steps: int
    seed: int
    work: Path
    evaluation: Evaluation | None = None
    tokens: Tokens | None = None
    class_name: str = ""
    resume_at: int | None = None

    @property
    def label(self) -> str:
        """Name in metrics and progress: the stage, or the stage and the class's number."""
        return f"{self.stage}/{self.work.name}" if self.class_name else self.stage


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The network's averaged weights, the `averaged` values of the method, the loss of every step, and evaluation scores and notes."""

    stage: str
    class_name: str
    label: str  # name in the metrics: the stage, or the stage and the class's number
    weights: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor]
    losses: tuple[float, ...]
    scores: tuple[tuple[int, float], ...] = ()
    step: int = 0
    notes: tuple[str, ...] = ()


def finetune_stage(job: StageJob) -> StageResult:
    """Train to `num_train_steps`, continuing from the newest undamaged checkpoint under `work`.

    Interrupted and uninterrupted runs end in identical weights on the same machine with the same number of processes. Returns the
    averages of the best evaluation, or of the last step without evaluations. Raises `DataError` on a non-finite loss, with step,
    images and last good checkpoint, and `MissingError` when memory runs out.
    """
    world = ProcessGroup.init()
    loop = _Loop(job, world)
    loop.run.restore(at_most=job.resume_at)
    tick(loop.run.step)
    with _memory_errors(job):
        while loop.run.step < job.num_train_steps:
            loop.advance()
            tick(loss=loop.run.losses[-1], series=job.label, step=loop.run.step)
    return loop.result()


class _Loop:
    """The training loop: combines image order, prepared rows, method, run state and evaluator."""

    def __init__(self, job: StageJob, world: ProcessGroup) -> None:
        self.job, self.config, self.world = job, job.config, world
        self.parts = world.split(job.config.batch_size, job.config.gradient_accumulation_steps)
        self.order = Order(job.labels, seed=job.seed, balanced=job.config.class_balanced)
        self.model = load_model(job.base)
        self.model.to(world.device)
        self.prepared, texts = self._prepare()
        self.method = make_method(self.model, job.stage, job.config, texts, world, tokens=job.tokens, seed=job.seed)
        checkpoints = Checkpoints(job.work, limit=job.config.checkpoints_total_limit) if world.is_first else None
        self.run = TrainingRun(self.method, job.config, job.num_train_steps, world, checkpoints)
        self.evaluator = None
        if job.evaluation is not None:
            self.evaluator = Evaluator(job.base, self.method, job.evaluation, job.work / EVALUATIONS, world.device)

    def advance(self) -> None:
        """Take one optimizer step, then the evaluation, snapshot and checkpoint that are due."""
        config, run = self.config, self.run
        losses = []
        for index, part in enumerate(self.parts):
            with self._quiet(index), torch.autocast(self.world.device.type, *self._precision()):
                loss = self._losses(part)
            with self._quiet(index):
                run.scaler.scale(loss.mean() / len(self.parts)).backward()
            losses.append(loss.detach())
        mean = self._mean(torch.cat(losses))
        self.method.exchange(self.world)
        run.update(mean)
        last = run.step == self.job.num_train_steps
        if self.job.evaluation is not None and (run.step % self.job.evaluation.steps == 0 or last):
            self._evaluate()
        if config.ema_snapshot_steps and (run.step % config.ema_snapshot_steps == 0 or last) and run.power and self.world.is_first:
            write_snapshot(self.job.work / SNAPSHOTS, run.power, run.step)
        if run.step % config.checkpointing_steps == 0 or last:
            self._checkpoint()

    def result(self) -> StageResult:
        """The averages of the best evaluation, or of the last step without evaluations."""
        run, step = self.run, self.run.step
        averaged = run.averaged()
        if self.evaluator is not None and run.scores:
            step = _best(run.scores)
            averaged = self.evaluator.read_kept(step) if self.world.is_first else averaged
        return StageResult(
            stage=self.job.stage,
            class_name=self.job.class_name,
            label=self.job.label,
            weights=self.method.weights(averaged),
            averaged=averaged,
            losses=tuple(run.losses),
            scores=tuple(run.scores),
            step=step,
            notes=tuple(run.notes),
        )

    def _prepare(self) -> tuple[Prepared, Texts | None]:
        """Encode what needs encoding only once; encoders that are no longer needed leave the device."""
        job, world = self.job, self.world
        prepared = Prepared(
            self.model,
            job.source,
            jitter=jitter_of(self.config, self.model),
            flip=self.config.horizontal_flip,
            device=world.device,
            share=slice(world.rank, None, world.size),
        )
        learns_text = self.config.method == "textual_inversion"
        texts = None if learns_text else Texts(self.model, job.prompts, cache=job.source.cache, device=world.device)
        world.broadcast(None)  # a barrier: no process reads the cache before all have written
        if not prepared.encodes_each_step and not learns_text:
            self.model.to("cpu")
        return prepared, texts

    def _losses(self, part: slice) -> torch.Tensor:
        """Loss of each image in `part` of this step's batch, float32 [n]."""
        job, step, size = self.job, self.run.step, self.config.batch_size
        chosen = self.order.indices(step * size + part.start, part.stop - part.start)
        streams = step_streams(job.seed, job.stage, step, part, self.world.device)
        text = self.method.text(drop_prompts([job.prompts[i] for i in chosen.tolist()], self.config.prompt_dropout, streams))
        rows = self.prepared.take(chosen, streams)
        return self.model.loss(job.stage, self.method.network, rows, text, streams, snr_gamma=self.config.snr_gamma)

    def _mean(self, losses: torch.Tensor) -> float:
        """Mean over the batches of all processes. Raises `DataError` when one is not finite."""
        everyone = self.world.gather(losses)
        mean = float(everyone.mean())
        if not math.isfinite(mean):
            raise DataError(self._diverged(everyone.cpu()))
        return mean

    def _diverged(self, losses: torch.Tensor) -> str:
        step, size = self.run.step, self.config.batch_size
        chosen = self.order.indices(step * size, size)
        bad = [int(i) for i, loss in zip(chosen, losses, strict=True) if not math.isfinite(loss)]
        names = ", ".join(self.job.keys[i] for i in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        saved = next(iter(self.run.checkpoints.steps()), 0) if self.run.checkpoints is not None else 0
        kept = f"the checkpoint of step {saved} in {self.job.work}" if saved else "none, no checkpoint was written yet"
        value = "nan" if losses.isnan().any() else "infinite"
        return f"finetune: loss became {value} at step {step + 1} on image {names}; last good state: {kept}. Lower finetune.learning_rate"

    def _evaluate(self) -> None:
        assert self.evaluator is not None
        run = self.run
        averaged = run.averaged()
        score = self.evaluator.score(averaged, run.step) if self.world.is_first else 0.0
        run.scores.append((run.step, float(self.world.broadcast(score))))
        if self.world.is_first and best_step(run.scores) == run.step:
            self.evaluator.keep(averaged, run.step)

    def _checkpoint(self) -> None:
        self.run.save()
        if self.evaluator is not None and self.world.is_first and self.run.checkpoints is not None:
            # A restart may fall back to an older checkpoint; keep the best weights as of each checkpoint.
            self.evaluator.forget_except([best_step([x for x in self.run.scores if x[0] <= s]) for s in self.run.checkpoints.steps()])

    def _quiet(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients only after the last part of a step."""
        network = self.method.network
        if index + 1 < len(self.parts) and isinstance(network, nn.parallel.DistributedDataParallel):
            return network.no_sync()
        return contextlib.nullcontext()

    def _precision(self) -> tuple[torch.dtype, bool]:
        kinds = {"no": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}
        return kinds[self.config.mixed_precision], self.config.mixed_precision != "no"


def _best(scores: Sequence[tuple[int, float]]) -> int:
    step = best_step(scores)
    if step is None:
        raise DataError("finetune: no evaluation gave a number; see finetune.evaluation_metric and evaluation_images_per_class")
    return step


def step_streams(seed: int, stage: str, step: int, part: slice, device: torch.device | str = "cpu") -> RandomStreams:
    """The random streams of the images at the positions `part` of a step's batch."""
    return RandomStreams([stream_seed("finetune", seed, stage, step, position) for position in range(part.start, part.stop)], device)


def jitter_of(config: FinetuneConfig, model: Model) -> float:
    """`finetune.jitter`, by default 0.5 for pixel models and 0 for latent ones, which would have to encode every jittered image again."""
    if config.jitter is not None:
        return config.jitter
    return 0.5 if model.card.family == "pixel_cascade" else 0.0


@contextlib.contextmanager
def _memory_errors(job: StageJob) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(job, error) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # message of the CPU's allocator
            raise
        raise _out_of_memory(job, error) from None


def _out_of_memory(job: StageJob, error: Exception) -> MissingError:
    config = job.config
    ways = [f"raise finetune.gradient_accumulation_steps (now {config.gradient_accumulation_steps}): the result stays the same"]
    if not config.gradient_checkpointing:
        ways.append("set finetune.gradient_checkpointing: true")
    if config.mixed_precision == "no":
        ways.append("set finetune.mixed_precision: bf16")
    ways.append(f"lower finetune.batch_size (now {config.batch_size})")
    return MissingError(f"finetune: out of memory in stage {job.stage} ({str(error).splitlines()[0][:120]}); {', or '.join(ways)}")
