"""The trainer: a folder of clips in, checkpoints and sample videos out."""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from video_diffusion_pytorch.conditions import given
from video_diffusion_pytorch.data.condition_files import split_conditions
from video_diffusion_pytorch.data.dataset import Dataset, PictureFolder
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.evaluation.evaluator import Evaluation, Evaluator
from video_diffusion_pytorch.evaluation.results import write_result
from video_diffusion_pytorch.host_memory import keep_freed_memory
from video_diffusion_pytorch.training.batches import (
    ClipDraws,
    Endless,
    EndlessShuffle,
    collate,
    unpack_batch,
)
from video_diffusion_pytorch.training.checkpoint import Checkpoints, check_folder
from video_diffusion_pytorch.training.checkpoint_file import FORMAT
from video_diffusion_pytorch.training.checks import (
    check_arguments,
    check_model,
    check_sample_conditions,
    check_scale_of_samples,
    whole_steps,
)
from video_diffusion_pytorch.training.cpu_threads import CPUThreads
from video_diffusion_pytorch.training.data_source import Batch, DataSource, check_source
from video_diffusion_pytorch.training.ema import EMA, Averages
from video_diffusion_pytorch.training.evaluate import (
    Validation,
    make_evaluator,
    validation_losses,
)
from video_diffusion_pytorch.training.fsdp import clip_gradients, sharded_like
from video_diffusion_pytorch.training.initialize import (
    SavedModel,
    freeze_parameters,
    initial_model,
    warn_of_other_classes,
)
from video_diffusion_pytorch.training.memory import (
    explain_out_of_memory,
    is_out_of_memory,
)
from video_diffusion_pytorch.training.metrics import MetricsFile, StepMetrics, Trackers
from video_diffusion_pytorch.training.optimizer import (
    Schedule,
    make_optimizer,
    make_schedule,
    optimizer_settings,
)
from video_diffusion_pytorch.training.processes import Processes, compile_network, make_accelerator
from video_diffusion_pytorch.training.progress import Progress
from video_diffusion_pytorch.training.resume import (
    check_classes,
    checkpoint_to_resume,
    clip_info_of,
    load_model,
    load_optimizer,
    load_random_states,
    random_states,
    read_state,
    resume_condition_scales,
    resume_sigma_data,
    resume_value_range,
    warn_of_decayed_rate,
)
from video_diffusion_pytorch.training.samples import (
    describe,
    draw_samples,
    is_of_others,
    write_samples,
)
from video_diffusion_pytorch.training.signals import StopSignals, TrainingInterrupted
from video_diffusion_pytorch.version import __version__

logger = logging.getLogger("video_diffusion_pytorch")

# Types of settings that trackers take
_PLAIN = (bool, int, float, str)

# Options of the clips that hold for pictures, too
_FOR_PICTURES = ("fit", "crop", "horizontal_flip", "vertical_flip", "axes", "square_pixels")

_HOW_TO_CONTINUE = (
    "from which training continues with resume='auto' (in a command --resume auto, the default)"
)


def noop(*args: Any, **kwargs: Any) -> None:
    """Does nothing: the default `log_fn` of `Trainer.train`."""


class MicroBatch(NamedTuple):
    """Result of the forward and backward pass of a micro-batch.

    Attributes:
        positions: Positions of its clips in the run.
        losses: The loss of each clip, `(b,)`, or a scalar if `compute_loss` returns their mean.
        t: Time steps, `(b,)`; None if the model draws them itself.
    """

    positions: Sequence[int]
    losses: Tensor
    t: Tensor | None

    @property
    def is_bad(self) -> list[bool]:
        """Whether each clip, or else their mean, has a NaN or infinite loss."""
        return (~self.losses.isfinite()).expand(len(self.positions)).tolist()


@dataclass
class RunState:
    """State of the training loop.

    Attributes:
        good_step: The last step whose loss and gradients were finite.
        skipped_in_row: Number of steps skipped since then.
        has_diverged: Whether the last step was skipped and the weights may have diverged.
        checkpoint_is_due: Whether a checkpoint is postponed until the next good step.
        weights_are_whole: False during an update of the weights or while a checkpoint is written.
        first_step: Number of the first step of this call of `train`.
        logged_step: The step of the last line of metrics.
        validated_step: The step of the last validation.
        should_stop: Whether any process received a signal, as all processes agreed.
    """

    good_step: int = 0
    skipped_in_row: int = 0
    has_diverged: bool = False
    checkpoint_is_due: bool = False
    weights_are_whole: bool = False
    first_step: int = 1
    logged_step: int = 0
    validated_step: int = -1
    should_stop: bool = False


class Trainer:
    """Trains a `GaussianDiffusion` on a folder of clips, or on any dataset.

    Every `save_and_sample_every` steps, at milestone N, it writes a checkpoint `model-N.pt` and
    samples to the results folder: `N.gif` (a grid that plays), `N.npy` (the values) and, with
    conditions, `N.txt` (the conditions in words). Metrics go to `metrics.jsonl`. Started by
    `torchrun` or `accelerate launch`, it trains on several processes. A subclass may override
    `make_dataset`, `make_image_dataset`, `make_dataloader`, `make_optimizer`, `make_schedule`,
    `unpack_batch`, `compute_loss`, `sample`, `save_sample` and `checkpoint_state`.

    Args:
        diffusion_model: The diffusion to train; it is moved to the training device.
        folder: Folder of clips, searched recursively for every format that `Dataset` reads; None
            with `dataset` or `dataloader`.
        ema_decay: Decay of the exponential moving average of the weights, in [0, 1): the share of
            the old average in each update. A sequence keeps one average per decay; the first draws
            the samples. `"posthoc"` keeps two averages of relative widths 0.1 and 0.05 and writes
            snapshots of them, from which `posthoc_average` makes averages of other widths.
        num_frames: Ignored: a clip has `diffusion_model.num_frames` frames.
        train_batch_size: Clips per micro-batch, on each process.
        train_lr: Learning rate, at least 0.
        train_num_steps: Optimizer steps after which training is complete.
        gradient_accumulate_every: Micro-batches per optimizer step.
        amp: Whether to train in mixed precision: bfloat16 where the hardware supports it, otherwise
            float16 with a loss scale.
        step_start_ema: With `ema_warmup="copy"`, the average is a copy of the weights before this
            step.
        update_ema_every: Steps between updates of the averages.
        save_and_sample_every: Steps between milestones.
        results_folder: Folder for checkpoints, samples and metrics; created if missing.
        num_sample_rows: Rows and columns of a milestone's grid: `num_sample_rows ** 2` samples.
        max_grad_norm: Largest norm of the gradients, above 0, to which larger ones are clipped;
            None for no gradient clipping.
        device: Training device, such as `"cpu"`; None for the fastest available.
        num_workers: Worker processes that read clips; 0 to read in the main process. None for one
            per core, at most 8, and none for a cache or where processes cannot fork.
        dataset: Dataset to train on instead of `folder`, map-style or iterable, whose collated
            items `unpack_batch` understands. Its attribute `value_range`, if any, becomes the
            model's.
        dataloader: Iterable of such batches, instead of `folder`. It keeps its own order, also
            after `load`.
        held_out: Number of files that are not trained on, and whose conditions the samples get.
            If they are fewer than the samples, evenly spaced training clips give the rest,
            preferably with other captions, classes or numbers. None for as many as there are
            samples, but at most 5 % of the files, if the clips have conditions; 0 for none.
        sample_conditions: Conditions of the samples, as keywords of `diffusion.sample`, such as
            `{"cond": ["a whale"]}`, repeated to the number of samples; None for those of clips.
        sample_cond_scale: Guidance scale of the samples; 1 disables guidance. Or one by condition,
            as in `GaussianDiffusion.sample`.
        image_frames: Independent images appended to each clip (Ho et al. 2022, section 4.3.1):
            random frames of other clips, with the conditions of those frames; 0 for none.
        image_folder: Folder from which these images are drawn: pictures of any size and clips,
            searched recursively. Where clips have captions or classes, a picture's caption is in
            `picture.txt` and its class is the name of its subfolder. None to draw from the clips.
        seed: Seed of the order of the clips and of everything random about them, such as noise;
            None to draw one from torch's generator.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`, to choose the precision explicitly; None for
            that of `amp` or `accelerate launch`.
        split_batches: Whether `train_batch_size` is the total over all processes.
        fsdp: Whether each process keeps only a shard of weights, averages and optimizer state
            (FSDP2, torch's `fully_shard`), as with `accelerate launch --use_fsdp`.
        compile: Whether to compile the network's blocks, which takes some time once.
        optimizer: `"adam"`, `"adamw"`, or a function that makes one from the parameters.
        betas: Decays of Adam's moving averages of the gradient and of its square, each in [0, 1).
        weight_decay: Weight decay of kernels and matrices, at least 0.
        lr_schedule: `"constant"`; `"cosine"` or `"linear"` decay to 0 at `train_num_steps`; or a
            function that makes a torch scheduler from the optimizer.
        warmup_steps: Steps over which the learning rate rises linearly to `train_lr`.
        ema_warmup: How averages start: `"copy"`, or, with a decay that grows, `"power"` or
            `"inverse_gamma"`, as in `training.ema.decay_at`; ignored with `ema_decay="posthoc"`.
        save_every: Steps between checkpoints in addition to milestones; None for no more.
        keep_last: Number of most recent checkpoints to keep; None for all.
        keep_best: Number of checkpoints with the lowest validation loss to keep in addition.
        resume: `"auto"` to resume from the last undamaged checkpoint in the results folder, if
            there is one; `"never"` to refuse a folder that has one; a path to resume from that
            checkpoint; None for neither.
        max_skipped_steps: Consecutive steps with a NaN or infinite loss after which training fails.
        validation_folder: Folder of clips to validate on; None for none.
        validation_split: Share of the files to validate on, in (0, 1); or the name of a split, to
            validate on the manifest's rows with that name. Files of validation clips are never
            trained on. None for none.
        validation_manifest: Table of the validation clips, which are in `validation_folder` or else
            in `folder`; None for `manifest`. Without `validation_split`, its rows of the split
            `"val"`, `"valid"` or `"validation"` are used, or all rows if it has no splits.
        validation_dataset: Dataset with a length to validate on, whose items are as those of
            `dataset`; None for none.
        validate_every: Steps between validations; None for `save_and_sample_every`.
        validation_clips: Largest number of clips to validate on.
        evaluate_every: Steps between evaluations, which draw videos from the first average and
            compare them with real clips; None for none.
        evaluation: What they measure; None for `Evaluation(clips=256)`, which needs no files.
        log_every: Steps between lines of `metrics.jsonl`.
        log_with: Experiment tracker, such as `"tensorboard"` or `"wandb"`, or a list of several, as
            in accelerate; None for none.
        project: Project name for the trackers.
        init_from: Trained model whose weights a new run starts from, for fine-tuning: a training
            file, results folder, sharded folder or shared model, as in `load_diffusion`. Optimizer,
            averages and steps start anew; where `clip_info` lacks something, it gets the file's.
            A run that resumes does not read it. None for the weights of `diffusion_model`.
        init_averaged: Which weights of it: True for the (first) average, the decay of an average,
            or False for the last weights.
        init_without: Patterns, as in `fnmatch`, of names of `diffusion_model.state_dict()` that are
            not taken from it, such as `"*.label_emb.*"`: those parameters start with the values of
            `diffusion_model`, and may be missing from the file or have another shape there.
            `"value_*"` keeps the `value_range` of new clips.
        freeze: Patterns, as in `fnmatch`, of names of `diffusion_model.named_parameters()` that are
            not trained, such as `"denoise_fn.downs.*"`: their `requires_grad` becomes False.
        snapshot_every: With `ema_decay="posthoc"`, steps between snapshots `averages-STEP.pt` of
            the averages; None for `save_and_sample_every`. The last step has one as well.
        **data_options: Further keywords of `data.dataset.Dataset`, such as `conditions`,
            `clip_start`, `value_range` and `cache`; only with `folder` (`value_range` also with
            `dataset`).

    Raises:
        TypeError: If a keyword belongs to neither Trainer nor Dataset.
        ValueError: If an argument is out of range, or the first clip does not fit the model.
        FileNotFoundError: If the folder is missing or holds no clips.

    Attributes:
        step: Number of optimizer steps done.
        frozen: Names of the parameters that `freeze` matches.
        model: The diffusion that is trained.
        ema_model: The diffusion with averaged weights, which draws the samples.
    """

    def __init__(
        self,
        diffusion_model: GaussianDiffusion,
        folder: str | os.PathLike[str] | None = None,
        *,
        ema_decay: float | Sequence[float] | Literal["posthoc"] = 0.995,
        num_frames: int = 16,
        train_batch_size: int = 32,
        train_lr: float = 1e-4,
        train_num_steps: int = 100_000,
        gradient_accumulate_every: int = 2,
        amp: bool = False,
        step_start_ema: int = 2000,
        update_ema_every: int = 10,
        save_and_sample_every: int = 1000,
        results_folder: str | os.PathLike[str] = "./results",
        num_sample_rows: int = 4,
        max_grad_norm: float | None = None,
        device: str | None = None,
        num_workers: int | None = None,
        dataset: Any = None,
        dataloader: Any = None,
        held_out: int | None = None,
        sample_conditions: Mapping[str, Any] | None = None,
        sample_cond_scale: float | Mapping[str, float] = 1.0,
        image_frames: int = 0,
        image_folder: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        mixed_precision: str | None = None,
        split_batches: bool = False,
        fsdp: bool = False,
        compile: bool = False,
        optimizer: str | Callable[..., Any] = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        lr_schedule: str | Callable[..., Any] = "constant",
        warmup_steps: int = 0,
        ema_warmup: str = "copy",
        save_every: int | None = None,
        keep_last: int | None = None,
        keep_best: int = 0,
        resume: str | os.PathLike[str] | None = None,
        max_skipped_steps: int = 10,
        validation_folder: str | os.PathLike[str] | None = None,
        validation_split: float | str | None = None,
        validation_manifest: str | os.PathLike[str] | None = None,
        validation_dataset: Any = None,
        validate_every: int | None = None,
        validation_clips: int = 256,
        evaluate_every: int | None = None,
        evaluation: Evaluation | None = None,
        log_every: int = 10,
        log_with: Any = None,
        project: str = "video-diffusion",
        init_from: str | os.PathLike[str] | None = None,
        init_averaged: bool | float = True,
        init_without: Sequence[str] = (),
        freeze: Sequence[str] = (),
        snapshot_every: int | None = None,
        **data_options: Any,
    ) -> None:
        arguments = {**locals()}
        check_model(diffusion_model)
        check_arguments(arguments)
        self._settings = {n: v for n, v in arguments.items() if isinstance(v, _PLAIN)}

        # a step
        self.train_lr, self.optimizer, self.betas = train_lr, optimizer, betas
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.lr_schedule, self.warmup_steps, self.ema_warmup = lr_schedule, warmup_steps, ema_warmup
        self.train_num_steps, self.max_skipped_steps = train_num_steps, max_skipped_steps
        self.gradient_accumulate_every, self.amp = gradient_accumulate_every, amp
        self.step_start_ema, self.update_ema_every = step_start_ema, update_ema_every

        # between steps
        self.save_and_sample_every, self.save_every = save_and_sample_every, save_every
        self.validate_every = validate_every or save_and_sample_every
        self.snapshot_every = snapshot_every or save_and_sample_every
        self.evaluate_every, self.data_options = evaluate_every, data_options
        self.evaluation = Evaluation(clips=256) if evaluation is None else evaluation
        self.log_every, self.project, self.num_sample_rows = log_every, project, num_sample_rows
        self.sample_cond_scale, self.results_folder = sample_cond_scale, Path(results_folder)
        vars(self).update(whole_steps(vars(self)))

        # state
        self.model, self.image_size = diffusion_model, diffusion_model.image_size
        self.step, self.skipped_steps, self.run, self.progress = 0, 0, RunState(), Progress()
        self.losses: dict[str, float | None] = {"training": None, "validation": None}
        self.resumed_from: Path | None = None
        self.signals: StopSignals | None = None
        self._evaluator: Evaluator | None = None

        # collaborators
        self.accelerator = make_accelerator(
            amp, device, mixed_precision=mixed_precision, log_with=log_with, folder=results_folder
        )
        self.trackers, self.device = Trackers(self.accelerator), self.accelerator.device
        self.scaler, self.processes = self.accelerator.scaler, Processes(self.accelerator, fsdp)
        self.process, self.fsdp = self.processes.rank, self.processes.fsdp
        self.checkpoints = Checkpoints(
            self.results_folder, self.processes, keep_last=keep_last, keep_best=keep_best
        )
        self.batch_size, rest = divmod(train_batch_size, self.num_processes if split_batches else 1)
        if rest:
            raise ValueError(
                "Trainer: with split_batches, train_batch_size must be a multiple of the number of "
                f"processes, {self.num_processes}, got {train_batch_size}; change one of them"
            )
        self.data = self._make_data(arguments)
        found = checkpoint_to_resume(resume, self.results_folder)
        initial = initial_model(arguments, self.model, self.processes, resumes=found is not None)
        self.data.open()
        self.frozen = self._initialize_model(initial, freeze)
        self._prepare_model(ema_decay, compile)
        with self.processes.main_first():
            self.data.prepare_captions()
            check_folder(self.results_folder)
        if found is not None:
            self.load(found)
        if evaluate_every is not None:
            self._evaluator = self._make_evaluator()

    def _make_data(self, given: Mapping[str, Any]) -> DataSource:
        """Makes the source of the data from the arguments of the constructor."""
        # in a cycle of references only the garbage collector would end the workers, and slowly
        trainer: Trainer = weakref.proxy(self)

        def make_dataset(folder: Any, data_options: dict[str, Any] | None = None) -> Any:
            maker = trainer if data_options is None else trainer._with(data_options=data_options)
            return maker.make_dataset(folder, trainer.model)

        sources = {name: given[name] for name in ("folder", "dataset", "dataloader")}
        validated = ("folder", "split", "manifest", "dataset", "clips")
        chosen, scale = given["sample_conditions"], given["sample_cond_scale"]
        check_scale_of_samples("Trainer: sample_cond_scale", scale, self.model)
        if chosen is not None:
            check_sample_conditions(self.model, chosen)
        # unless it is overridden, workers need no copy of the Trainer
        is_own = type(self).unpack_batch is not Trainer.unpack_batch
        return DataSource(
            diffusion=self.model,
            processes=self.processes,
            make_dataset=make_dataset,
            make_image_dataset=lambda folder: trainer.make_image_dataset(folder, trainer.model),
            make_dataloader=lambda dataset: trainer.make_dataloader(dataset),
            unpack=self.unpack_batch if is_own else unpack_batch,
            source=check_source(sources, self.data_options, type(self), self.results_folder),
            sources=sources,
            options=self.data_options,
            batch_size=self.batch_size,
            seed=given["seed"],
            num_workers=given["num_workers"],
            held_out=given["held_out"],
            num_samples=self.num_sample_rows**2,
            chosen_conditions=None if chosen is None else dict(chosen),
            own_conditions=inspect.signature(self.compute_loss).parameters.keys(),
            image_frames=given["image_frames"],
            image_folder=given["image_folder"],
            validate_on={name: given[f"validation_{name}"] for name in validated},
        )

    def _initialize_model(self, source: SavedModel | None, freeze: Sequence[str]) -> list[str]:
        """Loads the initial weights and freezes some; returns the names of these."""
        with self.processes.main_first():
            if source is not None:
                source.load_into(self.model)
                warn_of_other_classes(source, self.class_names)
        return freeze_parameters(self.model, freeze)

    def _prepare_model(self, ema_decay: float | Sequence[float] | str, compile: bool) -> None:
        # before it is copied for the averages
        self.model.to(self.device).clip_info = self.data.clip_info
        self.averages = Averages(
            self.model,
            ema_decay,
            warmup=self.ema_warmup,
            start=self.step_start_ema,
            every=self.update_ema_every,
        )
        self.ema_model: Any = self.averages.first
        self.ema = EMA(next(iter(self.averages.models)))
        models = [*self.averages.models.values()]
        if compile:
            compile_network(self.model, *models)
        self.parallel_model = self.processes.share_model(self.model, models)
        # sharing the model broadcasts the main process's weights
        self.averages.copy(self.model)
        self.opt = self.accelerator.prepare(self.make_optimizer())
        self.scheduler = self.make_schedule()
        self.clip_draws = ClipDraws(self.model)
        self.metrics = StepMetrics(self.device, self.model.num_timesteps)
        self.metrics_file: MetricsFile | None = None

    def _with(self, **attributes: Any) -> Trainer:
        """A shallow copy with other attributes, for methods that a subclass overrides."""
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    # methods that a subclass may override

    def make_dataset(self, folder: str | os.PathLike[str], diffusion: GaussianDiffusion) -> Any:
        """Makes the dataset of clips; `unpack_batch` must understand its collated items."""
        apart = (self.results_folder, self.data.image_folder, self.data.validate_on["folder"])
        return Dataset(
            folder,
            diffusion.image_size,
            channels=diffusion.channels,
            num_frames=diffusion.num_frames,
            exclude=[p for p in apart if p is not None],
            # a quarter of the bytes to copy; the device converts to float faster
            as_uint8=True,
            **{"exts": None, "missing": diffusion.missing, **self.data_options},
        )

    def make_image_dataset(
        self, folder: str | os.PathLike[str], diffusion: GaussianDiffusion
    ) -> Any:
        """Makes the dataset of `image_folder`: clips, of which one frame each is used."""
        kinds, _, columns = split_conditions(self.data_options.get("conditions"))
        options = {k: v for k, v in self.data_options.items() if k in _FOR_PICTURES}
        return PictureFolder(
            folder,
            diffusion.image_size,
            diffusion.channels,
            has_captions="caption" in kinds or isinstance(columns.get("cond"), str),
            class_names=self.data.class_names,
            value_range=diffusion.config["value_range"],
            exclude=(self.results_folder,),
            as_uint8=True,
            **options,
        )

    def make_dataloader(self, dataset: Any) -> Any:
        """Makes the loader of shuffled batches, endless, starting at `order.position`."""
        is_stream = isinstance(dataset, IterableDataset)
        if not self.data.num_workers:
            # batches need the same memory at every step
            keep_freed_memory()
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=None if is_stream else self.order,
            num_workers=self.data.num_workers or 0,
            # a stream is exhausted after each epoch, and then restarted
            persistent_workers=bool(self.data.num_workers and is_stream),
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            # its own generator: a loader draws a seed when it is made, and a resumed run makes two
            generator=torch.Generator().manual_seed(self.order.seed),
        )

    def unpack_batch(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """Splits a batch into videos and keywords of the diffusion's forward, such as `cond`."""
        return unpack_batch(batch)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Makes the optimizer of `model`."""
        return make_optimizer(
            self.model,
            self.optimizer,
            lr=self.train_lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            without=self.frozen,
        )

    def make_schedule(self) -> Any:
        """Makes the learning-rate schedule of `opt`; returns None for a constant learning rate."""
        return make_schedule(
            self.opt,
            self.lr_schedule,
            warmup_steps=self.warmup_steps,
            total_steps=self.train_num_steps,
        )

    def compute_loss(self, videos: Tensor, **kwargs: Any) -> Tensor:
        """The loss of a micro-batch, in the training precision.

        Validation calls it as well, on a copy of the trainer whose `model` and `parallel_model` are
        the model to validate, in evaluation mode.

        Args:
            videos: `(b, c, f, h, w)`.
            **kwargs: Keywords of the diffusion's forward: conditions, and the random draws of each
                clip (`t`, `noise` and masks, from `ClipDraws`).

        Returns:
            The loss of each clip, `(b,)`; a subclass may return their mean, a scalar.
        """
        if "null_cond_prob" in kwargs:
            kwargs.pop("drop_mask", None)
        with self.accelerator.autocast():
            return self.parallel_model(videos, **kwargs)

    def sample(self, ema_decay: float | None = None) -> Tensor:
        """Draws a milestone's samples, `(num_sample_rows ** 2, c, f, h, w)`, from an average.

        The processes share the work, and each returns all samples. Noise and conditions are the
        same at every milestone. The random state of training is unchanged.

        Args:
            ema_decay: Decay of the average that draws; None for the first.

        Raises:
            ValueError: If the model takes conditions, and no batch has provided them yet.
        """
        conditions = self.data.sample_conditions
        if conditions is None:
            raise ValueError(
                "Trainer.sample: the samples must be conditioned on "
                f"{', '.join(self.model.condition_names)}, got none; train first, or pass "
                "sample_conditions"
            )
        count = self.num_sample_rows**2
        videos = draw_samples(
            cast(GaussianDiffusion, self.averages.choose(ema_decay)),
            count,
            self.batch_size,
            self.data.to_device(conditions),
            self.order.seed,
            self.sample_cond_scale,
            share=self.processes.share,
            advance=self.progress.advance,
        )
        return self.processes.gather(videos)[:count]

    def save_sample(self, videos: Tensor, milestone: int) -> Path:
        """Writes a grid `N.gif`, values `N.npy` and conditions `N.txt`; returns the grid's path."""
        info = self.model.clip_info
        return write_samples(
            videos,
            self.results_folder,
            str(milestone),
            rows=self.num_sample_rows,
            value_range=self.model.config["value_range"],
            in_unit_range=self.model.auto_normalize,
            captions=describe(
                self.data.sample_conditions or {},
                info.class_names,
                len(videos),
                columns=list(info.cond_ranges),
            ),
            # gifs play no faster
            fps=min(info.fps or 8.0, 50.0),
        )

    def checkpoint_state(self) -> dict[str, Any]:
        """The checkpoint: tensors and plain values. Every process must call it."""
        losses = {**self.losses}
        if self.run.validated_step != self.step:
            # a validation loss counts only for the weights it was measured with
            losses["validation"] = None
        return {
            **self.averages_state(),
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "optimizer_settings": optimizer_settings(self.opt),
            **({"frozen": self.frozen} if self.frozen else {}),
            "scheduler": {} if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "losses": losses,
            "skipped_steps": self.skipped_steps,
            "even_times": self.clip_draws.is_even,
            "random_states": self.processes.from_all(random_states()),
            "data": self.data.state_dict(),
        }

    def averages_state(self) -> dict[str, Any]:
        """The part of a checkpoint that the averages need. Every process must call it."""
        first, *others = self.averages.named().items()
        return {
            "format": FORMAT,
            "version": __version__,
            "step": self.step,
            "ema": first[1].state_dict(),
            "emas": {name: average.state_dict() for name, average in others},
            "ema_decays": [*self.averages.models],
            **({"ema_posthoc": True} if self.averages.is_posthoc else {}),
            "config": {
                "unet": getattr(unwrap(self.model.denoise_fn), "config", None),
                "diffusion": self.model.config,
                "clips": self.model.clip_info.to_config(),
            },
        }

    def reset_parameters(self) -> None:
        """Makes the averages copies of the weights."""
        self.averages.copy(self.model)

    def step_ema(self) -> None:
        """Updates the averages, or copies the weights up to `step_start_ema`."""
        self.averages.update(self.model, self.step)

    # attributes of the collaborators

    @property
    def ds(self) -> Any:
        """The dataset of clips; None with a `dataloader`."""
        return self.data.dataset

    @property
    def dl(self) -> Endless:
        """The endless iterator of batches."""
        return self.data.loader

    @property
    def order(self) -> EndlessShuffle:
        """The order of the clips."""
        return self.data.order

    @property
    def num_workers(self) -> int | None:
        """Number of worker processes that read clips."""
        return self.data.num_workers

    @property
    def validation(self) -> Validation | None:
        """The validation clips; None for none."""
        return self.data.validation

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label, if the clips' folder has classes."""
        return self.data.class_names

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes the files."""
        return self.processes.is_main

    @property
    def num_processes(self) -> int:
        """Number of processes (world size)."""
        return self.processes.world_size

    # a step

    def train_step(self, **kwargs: Any) -> float:
        """Runs one optimizer step of `gradient_accumulate_every` micro-batches; returns their loss.

        A step whose loss or gradients are NaN or infinite leaves the weights unchanged.

        Args:
            **kwargs: Further keywords of the diffusion's forward.

        Raises:
            FloatingPointError: If that happens in `max_skipped_steps` consecutive steps.
            TrainingOutOfMemory: If the device runs out of memory.
        """
        self.model.train()
        self.opt.zero_grad()

        # gradients accumulate over the micro-batches; the last one synchronizes the processes
        parts: list[MicroBatch] = []
        try:
            for i in range(self.gradient_accumulate_every):
                is_last = i == self.gradient_accumulate_every - 1
                parts.append(self._micro_batch(is_last, **kwargs))
            if self.scaler is not None:
                self.accelerator.unscale_gradients(self.opt)
            norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            precision = self.accelerator.mixed_precision
            raise explain_out_of_memory(self.model, self.batch_size, precision, error) from error

        # all processes agree whether to take the step
        mean = torch.stack([part.losses.mean() for part in parts]).mean()
        loss, grad_norm = self._agree(mean, norm)
        # with a loss scale gradients overflow now and then, and the scaler lowers the scale
        is_good = math.isfinite(loss) and (self.scaler is not None or math.isfinite(grad_norm))

        # weights and averages
        self.run.weights_are_whole = False
        if is_good or self.scaler is not None:
            # a loss scaler skips a bad step itself, and updates its scale
            self.opt.step()
        self._step_schedule(was_skipped=not is_good or self.accelerator.optimizer_step_was_skipped)
        if is_good and self.step % self.update_ema_every == 0:
            self.step_ema()
        self.step += 1
        self.run.weights_are_whole = True

        self.step_metrics = {"grad_norm": grad_norm, "skipped": not is_good}
        if is_good:
            self.run.skipped_in_row, self.run.has_diverged = 0, False
            for part in parts:
                if part.t is not None and part.losses.ndim:
                    self.metrics.add_losses(part.losses, part.t)
        else:
            self._note_bad_step(parts, loss)
        return loss

    def next_batch(self) -> Batch:
        """The next micro-batch of this process, on the training device."""
        return self.data.next_batch()

    def _micro_batch(self, is_last: bool, **kwargs: Any) -> MicroBatch:
        """Accumulates the gradients of the next micro-batch."""
        batch = self.next_batch()
        images = batch.conditions.get("images")
        frames = batch.videos.shape[2] + (0 if images is None else images.shape[2])
        seeds = [self.order.seed_at(position) for position in batch.positions]
        drawn = self.clip_draws(seeds, frames, kwargs.get("prob_focus_present", 0.0))
        # given values replace drawn ones
        keywords = {**drawn, **batch.conditions, **kwargs}
        with self.processes.exchange(self.model, self.parallel_model, is_last):
            losses = self.compute_loss(batch.videos, **keywords)
            loss = losses.mean() / self.gradient_accumulate_every
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return MicroBatch(batch.positions, losses.detach().float(), keywords.get("t"))

    def _agree(self, loss: Tensor, norm: Tensor) -> tuple[float, float]:
        """Means over the processes; also exchanges whether one of them received a signal."""
        values = torch.stack([loss, norm.to(loss), torch.zeros_like(loss) + self._is_caught])
        # the only device synchronization of a step
        sums = self.processes.sum(values).tolist()
        self.run.should_stop = sums[2] > 0
        return sums[0] / self.num_processes, sums[1] / self.num_processes

    def _step_schedule(self, was_skipped: bool) -> None:
        if isinstance(self.scheduler, Schedule):
            # train_num_steps may have been changed meanwhile
            self.scheduler.total_steps = self.train_num_steps
        if self.scheduler is None:
            return
        with warnings.catch_warnings():
            if was_skipped:
                # torch warns if the optimizer's first step was skipped
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def _note_bad_step(self, parts: list[MicroBatch], loss: float) -> None:
        """Counts and logs a skipped step and its clips."""
        self.run.skipped_in_row += 1
        self.skipped_steps += 1
        positions = [place for part in parts for place in part.positions]
        is_bad = [bad for part in parts for bad in part.is_bad]
        own = [*zip(self.data.names(positions), is_bad, strict=True)]
        clips = [clip for those in self.processes.from_all(own) for clip in those]
        # if some clips have a finite loss, the others are at fault; otherwise the weights may be
        bad_names = [name for name, bad in clips if bad]
        self.run.has_diverged = len(bad_names) in (0, len(clips))
        names = bad_names or [name for name, _ in clips]
        if self.is_main:
            logger.warning(
                "step %d is skipped, as its %s not finite (loss %s); its clips: %s",
                self.step,
                "gradients are" if math.isfinite(loss) else "loss is",
                loss,
                ", ".join(names),
            )
        self._write_line(
            {"step": self.step, "time": time.time(), "event": "skipped step", "clips": names}
        )
        if self.run.skipped_in_row >= self.max_skipped_steps:
            if self.signals is not None and self.run.has_diverged:
                self._set_diverged_aside()
            raise FloatingPointError(
                "Trainer: loss and gradients must be finite, got "
                f"{self.run.skipped_in_row} steps in a row that are not; "
                f"{self.checkpoints.describe_newest()}: train on with a smaller train_lr, with "
                "max_grad_norm=1.0 or without half precision, and look at the clips that were named"
            )

    # the loop

    def train(
        self,
        prob_focus_present: float = 0.0,
        focus_present_mask: Tensor | None = None,
        log_fn: Callable[[dict[str, Any]], Any] = noop,
    ) -> None:
        """Trains up to `train_num_steps`, with a milestone every `save_and_sample_every` steps.

        After SIGTERM or Ctrl+C it finishes the current step, writes a checkpoint and raises
        SystemExit(143) or a KeyboardInterrupt that, uncaught, ends Python with exit code 130 and
        without a traceback; a second signal raises at once. The last step has a checkpoint as well.

        Args:
            prob_focus_present: Probability, per clip, that its frames do not attend to each other.
            focus_present_mask: Boolean `(train_batch_size,)`, true for clips whose frames do not
                attend to each other; None to draw it.
            log_fn: Called after each step, on every process, with a dict: `step` (done so far),
                `loss` (mean over the step's micro-batches and processes), `lr`, `grad_norm`,
                `skipped` (whether the weights were left unchanged), `data_wait` (share of the
                step's time spent waiting for clips); after a validation or an evaluation its
                losses or scores; and at a milestone `sample`, the path of the gif.
        """
        mask = None if focus_present_mask is None else focus_present_mask.to(self.device)
        focus = given(
            {"prob_focus_present": prob_focus_present or None, "focus_present_mask": mask}
        )
        signals = StopSignals()
        steps = self.step, self.train_num_steps
        try:
            race = self._begin()
            with signals, self.progress.of_steps(*steps, is_shown=self.is_main) as bar:
                self.signals = signals
                try:
                    self._loop(bar, log_fn, focus)
                except Exception as error:
                    self._save_after(error, race)
                    raise
            signals.leave()
        except (KeyboardInterrupt, SystemExit) as end:
            is_interrupt = isinstance(end, KeyboardInterrupt)
            if self.is_main and (is_interrupt or signals.caught is not None):
                newest = self.checkpoints.describe_newest(_HOW_TO_CONTINUE)
                logger.warning("training is stopped at step %d: %s", self.step, newest)
            if is_interrupt:
                raise TrainingInterrupted(*end.args) from end
            raise
        finally:
            self.signals = None
            self.trackers.end()
            self.data.end_workers()
            self.checkpoints.release_folder()

    def _begin(self) -> str:
        """Claims the results folder; returns the key of the race to save after an error."""
        self.run.should_stop, self.run.first_step = False, self.step + 1
        self.run.logged_step = self.step
        race = self.processes.new_race()
        if self.checkpoints.saved_step < 0:
            # the initial weights need no checkpoint
            self.checkpoints.saved_step = self.step
        with self.processes.main_first():
            if self.is_main:
                self.checkpoints.take_folder(self.step)
                self.metrics_file = MetricsFile(self.results_folder / "metrics.jsonl", self.step)
        self.trackers.start(self.project, self.settings(), step=self.step)
        self.run.weights_are_whole = True
        return race

    def _loop(
        self, bar: Any, log_fn: Callable[[dict[str, Any]], Any], focus: dict[str, Any]
    ) -> None:
        self._draw_missing_samples()
        threads = CPUThreads(self.device, self.num_processes)
        with threads.restored():
            while self.step < self.train_num_steps and not self.is_stopping:
                log = self._timed_step(threads, **focus)
                self.progress.note(loss=f"{log['loss']:.4f}", data_wait=f"{log['data_wait']:.0%}")
                bar.update()
                log |= self.after_step()
                log_fn(log)
        self.write_metrics()
        if self.run.has_diverged:
            self._set_diverged_aside()
        elif self.checkpoints.saved_step != self.step:
            self._save_step()
        self.checkpoints.forget_old()

    def _timed_step(self, threads: CPUThreads, **kwargs: Any) -> dict[str, Any]:
        """Runs a step and measures it; returns its values to log."""
        start, waited, cpu = time.perf_counter(), self.data.waited, time.process_time()
        step, position = self.step, self.order.position
        try:
            loss = self.train_step(**kwargs)
        except BaseException:
            if self.step == step:
                # an unfinished step is repeated with the same clips
                self.order.position = position
            raise
        seconds, waited = time.perf_counter() - start, self.data.waited - waited
        threads.add_step(seconds - waited, time.process_time() - cpu)
        if not self.step_metrics["skipped"]:
            self.run.good_step = self.step
            self.metrics.add_step(
                loss=loss,
                grad_norm=self.step_metrics["grad_norm"],
                clips=self.batch_size * self.gradient_accumulate_every,
                seconds=seconds,
                waited=waited,
            )
        return {
            "step": self.step,
            "loss": loss,
            "lr": self.opt.param_groups[0]["lr"],
            "data_wait": waited / seconds,
            **self.step_metrics,
        }

    def _save_after(self, error: Exception, race: str) -> None:
        """Saves a checkpoint after an error, if the weights are consistent.

        Of several processes the first that fails saves, without waiting for the others.
        """
        if not self.run.weights_are_whole or self.run.good_step <= self.checkpoints.saved_step:
            return
        try:
            is_finite = all(bool(weight.isfinite().all()) for weight in self.model.parameters())
            is_whole = is_finite and not (self.fsdp and self.num_processes > 1)
            if not is_whole or not self.processes.is_first(race):
                return
            self.processes.is_alone = self.num_processes > 1
            if not self.processes.is_alone:
                self.write_metrics()
            self._set_diverged_aside() if self.run.has_diverged else self._save_step()
        except Exception as failure:
            logger.warning("step %d could not be saved after an error: %s", self.step, failure)
            return
        finally:
            self.processes.is_alone = False
        path = self.checkpoints.saved_path
        note = f"training ended at step {self.step}, and its checkpoint is {path}"
        logger.warning("%s (%s: %s)", note, type(error).__name__, error)
        if hasattr(error, "add_note"):
            error.add_note(note)

    @property
    def _is_caught(self) -> bool:
        return self.signals is not None and self.signals.caught is not None

    @property
    def is_stopping(self) -> bool:
        """Whether a signal arrived, as far as all processes know."""
        return self.run.should_stop or (self.num_processes == 1 and self._is_caught)

    def _is_signalled(self) -> bool:
        """Whether any process received a signal; every process must call it."""
        flag = torch.tensor(float(self._is_caught), device=self.device)
        return bool(self.processes.sum(flag).item())

    # between steps

    def after_step(self) -> dict[str, Any]:
        """Validates, saves, evaluates and samples when due; returns the values to log."""
        found: dict[str, Any] = {}
        is_milestone = self.step % self.save_and_sample_every == 0
        is_saved = is_milestone or (self.save_every and self.step % self.save_every == 0)
        is_saved = is_saved or self.run.checkpoint_is_due
        if not self.step_metrics["skipped"]:
            self.checkpoints.forget_old()
        if self.data.validation is not None and self.step % self.validate_every == 0:
            with self.progress.doing("validating"):
                found |= self.validate()
            if self.losses["validation"] is not None:
                self.progress.note(val_loss=f"{self.losses['validation']:.4f}")
        if self.step % self.log_every == 0 or is_saved or self.step == self.run.first_step:
            self.write_metrics()
        is_last = self.step == self.train_num_steps
        if self.averages.is_posthoc and (is_last or self.step % self.snapshot_every == 0):
            # before the checkpoint, so that a run that resumes from it lacks none
            with self.progress.doing("saving"):
                self._write_snapshot()
        if is_saved:
            # before sampling, which takes long and may be interrupted
            with self.progress.doing("saving"):
                self._save_if_good()
        is_evaluated = self.evaluate_every is not None and self.step % self.evaluate_every == 0
        if is_evaluated and not self.is_stopping:
            with self.progress.doing("evaluating"):
                found |= self.evaluate()
        if is_milestone and not self.is_stopping:
            path = self._write_milestone_samples()
            if path is not None:
                found["sample"] = str(path)
        return found

    def _save_if_good(self) -> None:
        """Saves a checkpoint; if the weights may have diverged, only after the next good step."""
        if not self.run.has_diverged:
            self._save_step()
        elif not self.run.checkpoint_is_due and self.is_main:
            text = "the checkpoint of step %d, which was skipped, follows after the next good step"
            logger.warning(text, self.step)
        self.run.checkpoint_is_due = self.run.has_diverged

    def validate(self) -> dict[str, float]:
        """Measures the loss on the validation clips, always with the same time steps and noise.

        The random state of training is unchanged.

        Returns:
            `validation_loss`, of the weights, and `validation_loss_ema_D`, of the average with
            decay `D`.

        Raises:
            ValueError: If there are no validation clips.
        """
        if self.data.validation is None:
            raise ValueError("Trainer.validate: there must be clips to validate on, got none")
        averages = {f"_ema_{name}": model for name, model in self.averages.named().items()}
        models = {"": self.model, **averages}
        means, by_noise = validation_losses(
            self.data.validation,
            {
                name: self._with(model=model.eval(), parallel_model=model).compute_loss
                for name, model in models.items()
            },
            self.data,
            self.clip_draws,
            by_noise_of=next(iter(averages)),
            advance=self.progress.advance,
        )
        found = {f"validation_loss{name}": mean for name, mean in means.items()}
        self.losses["validation"] = means[next(iter(averages))]
        self.run.validated_step = self.step
        line = {"step": self.step, "time": time.time(), **found, "validation_by_noise": by_noise}
        self._write_line(line)
        return found

    def evaluate(self) -> dict[str, float]:
        """Scores videos drawn from the first average, as `evaluation` says.

        They are compared with the validation clips, or else with the training clips. The random
        state of training is unchanged. `evaluation-STEP.json` gets the scores and their protocol.

        Returns:
            Scores by name; empty if a signal arrived meanwhile, or, with a warning, if the average
            draws NaN or infinite values.

        Raises:
            ValueError: If the clips have no random access, or don't fit the evaluation.
        """
        if self._evaluator is None:
            self._evaluator = self._make_evaluator()
        average = cast(GaussianDiffusion, self.averages.first)
        evaluator, batch, drawn = self._evaluator, self.evaluation.max_batch, itertools.count(1)

        def after_batch() -> bool:
            done = next(drawn) * batch * self.num_processes
            self.progress.advance(min(done, evaluator.count), evaluator.count)
            return self._is_signalled()

        try:
            found = evaluator(average, after_batch)
        except FloatingPointError as error:
            # training may still recover
            logger.warning("step %d is not evaluated: %s", self.step, error)
            return {}
        if found is None:
            return {}
        if self.is_main:
            self.checkpoints.keep_folder()
            kind = "ema_std" if self.averages.is_posthoc else "ema_decay"
            about = {"step": self.step, kind: next(iter(self.averages.models))}
            with _not_fatal("the file of the evaluation"):
                result = evaluator.result(found, about, self.device)
                write_result(result, self.results_folder / f"evaluation-{self.step}.json")
        self._write_line({"step": self.step, "time": time.time(), **found})
        return found

    def _make_evaluator(self) -> Evaluator:
        dataset, indices = self.ds, self.order.indices
        if self.data.validation is not None:
            dataset, indices = self.data.validation.dataset, self.data.validation.indices
        return make_evaluator(
            self.model,
            dataset,
            self.evaluation,
            indices=indices,
            unpack=self.data.unpack_for_model,
            ready=self.data.to_device,
            class_names=self.data.class_names,
            share=self.processes.share,
            total=lambda values: self.processes.sum(values.to(self.device)).cpu(),
            num_workers=self.data.num_workers or 0,
        )

    # checkpoints

    def save(self, milestone: int | float | str) -> None:
        """Writes `model-{milestone}.pt` atomically; every process must call it.

        A sharded model's checkpoint is a folder, `model-{milestone}.sharded`. Then it removes the
        checkpoints that `keep_last` and `keep_best` don't keep; `train` does so after the next good
        step.

        Raises:
            OSError: If it can't be written.
        """
        self.run.weights_are_whole = False
        self.checkpoints.write(self.checkpoint_state(), milestone)
        self.run.weights_are_whole = True
        if self.signals is None:
            self.checkpoints.forget_old()

    def load(
        self,
        milestone: int | float | str | os.PathLike[str],
        *,
        map_location: Any = "cpu",
        **kwargs: Any,
    ) -> None:
        """Loads a checkpoint: weights, averages, optimizer and random states.

        Every process must call it. A checkpoint of any number of processes, sharded or not, loads
        into any other number. Optimizer settings that changed meanwhile, such as the learning rate,
        replace those of the checkpoint.

        Args:
            milestone: Number of the milestone; -1 for the last one, or, with a warning, the last
                undamaged one; `"best"` for the one with the lowest validation loss; or a path. The
                reference's files, which hold no optimizer and no random states, load as well.
            map_location: As in `torch.load`; the tensors are then moved to the training device.
            **kwargs: As in `load_state_dict`, for the model and its averages.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or of a model with other parameters, another objective,
                noise schedule or value range, or of another optimizer.
        """
        path, state = self.checkpoints.read(
            milestone,
            lambda path: read_state(path, map_location, self.model, self.opt, self.processes),
        )
        if self.fsdp:
            state = sharded_like(state, self.model, self.opt)
        check_classes(path, state, self.data.class_names)
        if self.data.sigma_data_is_fitted:
            # more clips may have another, but the weights are for this one
            resume_sigma_data([self.model, *self.averages.models.values()], state)
        if self.data.range_is_fitted:
            resume_value_range([self.model, *self.averages.models.values()], state)
        if self.data.options.get("cond_standardize"):
            resume_condition_scales([self.model, *self.averages.models.values()], state)
        load_model(self.model, self.averages, path, state, **kwargs)
        info = self.model.clip_info.completed_by(clip_info_of(state))
        for model in (self.model, *self.averages.models.values()):
            cast(GaussianDiffusion, model).clip_info = info
        self.resumed_from, self.step = path, state["step"]
        self.checkpoints.go_back_to(path, self.step)
        self.run.good_step = self.run.validated_step = self.step
        self.run.has_diverged = self.run.checkpoint_is_due = False
        self.skipped_steps = state.get("skipped_steps", 0)
        self.losses |= state.get("losses", {})
        load_optimizer(self.opt, self.scheduler, self.scaler, path, state, self.frozen)
        self.data.load_state_dict(state.get("data", {}), path)
        # a run of a version up to 0.8 goes on as it would have done
        self.clip_draws.is_even = state.get("even_times", "data" not in state)
        warn_of_decayed_rate(path, state, self.scheduler, len(self.order.indices))
        # its clips may have changed
        self._evaluator = None
        seed = self.order.seed_at(self.order.position)
        load_random_states(state.get("random_states"), self.processes, seed)

    def _save_step(self) -> None:
        """Saves a checkpoint of this step; never replaces the checkpoint of another step."""
        self.save(self.checkpoints.unused_name(self.milestone, self.step))

    def _write_snapshot(self) -> None:
        """Writes a snapshot of the post-hoc averages, which loads like a checkpoint's averages."""
        reached = self.averages.time_at(self.step)
        state = {**self.averages_state(), "model": {}, "ema_time": reached}
        self.checkpoints.write_snapshot(state)

    def _set_diverged_aside(self) -> None:
        """Saves weights that may have diverged under a name that no run resumes from by itself."""
        try:
            if self.run.good_step > self.checkpoints.saved_step:
                self.save(f"not-finite-step{self.step}")
            else:
                self.checkpoints.set_newest_aside()
        # the first error matters more
        except (OSError, RuntimeError) as error:
            logger.warning("the weights of step %d could not be kept: %s", self.step, error)
        self.checkpoints.is_unproven = False
        if self.is_main and self.checkpoints.saved_path is not None:
            logger.warning(
                "loss or gradients are not finite at step %d: its weights are in %s; %s",
                self.step,
                self.checkpoints.saved_path,
                self.checkpoints.describe_newest(),
            )

    # samples

    def _write_milestone_samples(self) -> Path | None:
        signals = cast(StopSignals, self.signals)
        # an interruption loses nothing: a resumed run draws missing samples
        signals.at_once = True
        path = None
        with self.progress.doing("sampling"):
            videos = self.sample()
        with self.processes.main_first():
            if self.is_main:
                self.checkpoints.keep_folder()
                with _not_fatal("a milestone's samples"):
                    path = self.save_sample(videos, self._sample_name(videos))
                    self.trackers.log_video(path, self.step)
        signals.at_once = False
        return self.processes.from_main(path)

    def _sample_name(self, videos: Tensor) -> Any:
        """The number of the milestone, with the step if other samples have that name."""
        milestone, saved = self.step // self.save_and_sample_every, self.checkpoints.saved_path
        name = f"{milestone}-step{self.step}"
        is_so_named = saved is not None and saved.stem == f"model-{name}"
        if is_so_named or is_of_others(videos, self.results_folder, str(milestone)):
            return name
        return milestone

    def _draw_missing_samples(self) -> None:
        """Draws the samples of the milestone that is resumed from, if they are missing."""
        milestone, rest = divmod(self.step, self.save_and_sample_every)
        path, is_missing = self.resumed_from, False
        names = (f"model-{milestone}", f"model-{milestone}-step{self.step}")
        if milestone and not rest and self.is_main and path is not None and path.stem in names:
            is_here = path.resolve().parent == self.results_folder.resolve()
            # with a user's loader the first batch, and so its conditions, is unknown
            is_known = self.data.sample_conditions is not None
            found = path.parent.glob(f"{path.stem.removeprefix('model-')}.*")
            # the grid is written last
            has_grid = any(one.suffix not in (".npy", ".txt") for one in found)
            is_missing = is_here and is_known and not has_grid
        if self.processes.from_main(is_missing):
            self._write_milestone_samples()

    # metrics

    @property
    def milestone(self) -> int | float:
        """The number in a checkpoint's name: the milestone, or a fraction between two of them."""
        whole, rest = divmod(self.step, self.save_and_sample_every)
        digits = max(6, len(str(self.save_and_sample_every)) + 1)
        return round(self.step / self.save_and_sample_every, digits) if rest else whole

    def settings(self) -> dict[str, Any]:
        """Settings of the run as plain values, for trackers."""
        network = getattr(unwrap(self.model.denoise_fn), "config", None) or {}
        own = {**self._settings, "num_workers": self.data.num_workers}
        return {"trainer": own, "diffusion": self.model.config, "unet": network}

    def write_metrics(self) -> None:
        """Writes a line of metrics of the steps since the last one, if there are any."""
        if self.run.logged_step == self.step:
            return
        lr = self.opt.param_groups[0]["lr"]
        line = self.metrics.take(self.step, lr, self.processes.sum)
        self.run.logged_step = self.step
        self.losses["training"] = line["loss"]
        self._write_line({**line, "skipped_steps": self.skipped_steps})

    def _write_line(self, line: Mapping[str, Any]) -> None:
        """Writes a line to `metrics.jsonl` and the trackers."""
        if self.is_main and self.metrics_file is not None:
            self.checkpoints.keep_folder()
            with _not_fatal("a line of metrics.jsonl"):
                self.metrics_file.write(dict(line))
            with _not_fatal("the trackers"):
                self.trackers.log(line)


@contextmanager
def _not_fatal(what: str) -> Iterator[None]:
    """Logs errors of output that training does not depend on, instead of raising them."""
    try:
        yield
    except Exception as error:
        logger.warning("training continues without %s: %s: %s", what, type(error).__name__, error)
