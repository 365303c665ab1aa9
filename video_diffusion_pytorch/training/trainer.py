"""The training loop: clips from a folder in, checkpoints and sample videos out."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.checkpoint import Resumable
from video_diffusion_pytorch.training.checks import check_counts, check_image_folder
from video_diffusion_pytorch.training.clip_source import check_sample_conditions
from video_diffusion_pytorch.training.ema import EMA
from video_diffusion_pytorch.training.precision import make_accelerator
from video_diffusion_pytorch.training.samples import describe, draw_samples, write_samples
from video_diffusion_pytorch.training.training_data import TrainingData


def noop(*args: Any, **kwargs: Any) -> None:
    """Logs nothing: the default of `Trainer.train`'s `log_fn`."""


class Trainer(TrainingData, Resumable):
    """Trains a `GaussianDiffusion` on a folder of clips, or on any dataset.

    Writes `model-N.pt`, and samples as `N.gif` (to look at), `N.npy` (their values) and, if they
    have conditions, `N.txt`, to the results folder at every N-th milestone. What it does is
    made of small methods, to be replaced in a subclass: `make_dataset`, `make_image_dataset`,
    `make_dataloader`, `make_optimizer`, `unpack_batch`, `compute_loss`, `sample`, `save_sample`
    and `checkpoint_state`.

    Args:
        diffusion_model: The diffusion to train; it is moved to the training device.
        folder: Where the clips are, at any depth and in any format that `Dataset` reads.
        ema_decay: Share of the old average in the new one, at each update.
        num_frames: Without effect: a clip has `diffusion_model.num_frames` frames.
        train_batch_size: Clips of a micro-batch.
        train_lr: Learning rate of Adam.
        train_num_steps: Number of optimizer steps after which training is complete.
        gradient_accumulate_every: Micro-batches of a step.
        amp: Whether to compute in half precision: bfloat16 where the hardware has it, otherwise
            float16 with a loss scale.
        step_start_ema: Up to this step the average is a copy of the weights.
        update_ema_every: Steps between updates of the average.
        save_and_sample_every: Steps between milestones.
        results_folder: Where checkpoints and samples go; made if missing.
        num_sample_rows: Rows, and columns, of a milestone's grid of samples.
        max_grad_norm: Norm to which gradients are cut; None for no cut.
        device: Where to train, such as `"cpu"`; None for the fastest there is.
        num_workers: Processes that read clips; 0 to read between the steps. None for as many as
            cores, at most 8, and none for a cache, or where processes cannot fork.
        dataset: In the place of `folder`: any dataset of torch's, one that iterates included, whose
            items `unpack_batch` understands once they are collated. If it has a `value_range`,
            that is the model's as well.
        dataloader: In the place of `folder`: anything that gives such batches when it is iterated
            over. Its order is its own, also after `load`.
        held_out: Number of files that are not trained on, and whose conditions the samples get.
            None for as many as there are samples, but at most a twentieth of the files, if they
            come with conditions.
        sample_conditions: What the samples are told instead: keywords of `diffusion.sample`, such
            as `{"cond": ["a whale"]}`, repeated to the number of samples.
        sample_cond_scale: Strength of the samples' guidance; 1 is without.
        image_frames: Images that each clip is trained with (Ho et al. 2022, section 4.3.1): frames
            drawn anew from other clips, with the conditions that they have there; 0 for none.
        image_folder: Where images are drawn from instead: pictures of any size and clips, at any
            depth. They are told the caption in `picture.txt` and the class whose name their
            sub-folder has, where clips are told such; None to draw from the clips.
        **data_options: Further keywords of `data.dataset.Dataset`, such as `conditions`,
            `clip_start`, `value_range` and `cache`; only with `folder`.

    Raises:
        TypeError: If a keyword is neither the Trainer's nor the Dataset's.
        ValueError: If an argument is outside its range, or the first clip does not fit the model.
        FileNotFoundError: If the folder is missing or holds no clips.

    Attributes:
        step: Number of optimizer steps done.
        model: The diffusion that is trained.
        ema_model: The diffusion with averaged weights, which draws the samples.
    """

    def __init__(
        self,
        diffusion_model: GaussianDiffusion,
        folder: str | os.PathLike[str] | None = None,
        *,
        ema_decay: float = 0.995,
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
        sample_cond_scale: float = 1.0,
        image_frames: int = 0,
        image_folder: str | os.PathLike[str] | None = None,
        **data_options: Any,
    ) -> None:
        self.batch_size, self.train_lr = train_batch_size, train_lr
        self.train_num_steps = train_num_steps
        self.gradient_accumulate_every = gradient_accumulate_every
        self.amp = amp
        self.step_start_ema, self.update_ema_every = step_start_ema, update_ema_every
        self.save_and_sample_every = save_and_sample_every
        self.num_sample_rows = num_sample_rows
        self.max_grad_norm = max_grad_norm
        self.num_workers = num_workers
        self.image_frames, self.image_folder = image_frames, image_folder
        self.image_size = diffusion_model.image_size
        self.step = 0
        self._check_counts()

        # data
        self.data_options = data_options
        self.results_folder = Path(results_folder)
        self.model = diffusion_model
        self.sample_cond_scale = sample_cond_scale
        sources = {"folder": folder, "dataset": dataset, "dataloader": dataloader}
        self._chosen_conditions = None if sample_conditions is None else dict(sample_conditions)
        if self._chosen_conditions is not None:
            check_sample_conditions(diffusion_model, self._chosen_conditions)
        self.accelerator = make_accelerator(amp, device)
        self.device = self.accelerator.device
        self._prepare_data(sources, held_out, num_sample_rows**2)

        # model, average and optimizer
        self._prepare_model(ema_decay)
        self.captions.prepare(self.known_captions, self.device)
        self.results_folder.mkdir(exist_ok=True, parents=True)

    def _check_counts(self) -> None:
        counts = {
            "train_batch_size": self.batch_size,
            "gradient_accumulate_every": self.gradient_accumulate_every,
            "update_ema_every": self.update_ema_every,
            "save_and_sample_every": self.save_and_sample_every,
            "num_sample_rows": self.num_sample_rows,
        }
        check_counts(counts, {"num_workers": self.num_workers, "image_frames": self.image_frames})
        check_image_folder(self.image_folder, self.image_frames)

    def _prepare_model(self, ema_decay: float) -> None:
        self.model.to(self.device)
        self.ema = EMA(ema_decay)
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False)
        self.opt = self.accelerator.prepare(self.make_optimizer())

    # what a subclass may make differently

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of `model`."""
        return torch.optim.Adam(self.model.parameters(), lr=self.train_lr)

    def compute_loss(self, videos: Tensor, **kwargs: Any) -> Tensor:
        """The loss of a micro-batch, in the training precision."""
        with self.accelerator.autocast():
            return self.model(videos, **kwargs)

    def sample(self) -> Tensor:
        """A milestone's samples, `(num_sample_rows ** 2, c, f, h, w)`, of the averaged model.

        Noise and conditions are the same at every milestone. Training's random numbers are not
        touched.
        """
        return draw_samples(
            self.ema_model,
            self.num_sample_rows**2,
            self.batch_size,
            self.sample_conditions(),
            self.order.seed,
            self.sample_cond_scale,
        )

    def save_sample(self, videos: Tensor, milestone: int) -> Path:
        """Writes the samples: a grid `N.gif`, their values `N.npy`, what they were told `N.txt`."""
        return write_samples(
            videos,
            self.results_folder,
            str(milestone),
            rows=self.num_sample_rows,
            value_range=self.model.config["value_range"],
            in_unit_range=self.model.auto_normalize,
            captions=describe(self._sample_conditions or {}, self.class_names, len(videos)),
        )

    # the average

    def reset_parameters(self) -> None:
        """Makes the average a copy of the weights."""
        current = self.model.state_dict()
        # copied, not loaded, which would check a file's names and schedule at each update
        for name, average in self.ema_model.state_dict().items():
            average.copy_(current[name])

    def step_ema(self) -> None:
        """Updates the average, or copies the weights up to `step_start_ema`."""
        if self.step < self.step_start_ema:
            self.reset_parameters()
        else:
            self.ema.update_model_average(self.ema_model, self.model)

    # the loop

    def train_step(self, **kwargs: Any) -> float:
        """One optimizer step over `gradient_accumulate_every` micro-batches; gives their mean loss.

        Args:
            **kwargs: Further keywords of the diffusion's forward.
        """
        self.model.train()
        self.opt.zero_grad()
        total = torch.zeros((), device=self.device)

        # gradients, summed over the micro-batches and exchanged with the last of them
        for i in range(self.gradient_accumulate_every):
            videos, conditions = self.next_batch()
            last = i == self.gradient_accumulate_every - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.compute_loss(videos, **conditions, **kwargs)
                self.accelerator.backward(loss / self.gradient_accumulate_every)
            total += loss.detach() / self.gradient_accumulate_every

        # weights
        if self.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.opt.step()

        # average
        if self.step % self.update_ema_every == 0:
            self.step_ema()
        self.step += 1
        return total.item()

    def train(
        self,
        prob_focus_present: float = 0.0,
        focus_present_mask: Tensor | None = None,
        log_fn: Callable[[dict[str, Any]], Any] = noop,
    ) -> None:
        """Trains up to `train_num_steps`, with a milestone every `save_and_sample_every` steps.

        Args:
            prob_focus_present: Probability that the frames of a clip do not see each other.
            focus_present_mask: Boolean `(train_batch_size,)`, the clips whose frames do not see
                each other; None to draw them.
            log_fn: Called after each step with a dict: `step` (done so far), `loss` (mean over
                the step's micro-batches), `lr`, `data_wait` (share of the step's time that was
                spent waiting for clips), and at a milestone `sample`, the gif's path.
        """
        focus: dict[str, Any] = {}
        if prob_focus_present:
            focus["prob_focus_present"] = prob_focus_present
        if focus_present_mask is not None:
            focus["focus_present_mask"] = focus_present_mask.to(self.device)
        with tqdm(initial=self.step, total=self.train_num_steps, desc="training") as bar:
            while self.step < self.train_num_steps:
                log = self._step_and_milestone(**focus)
                log_fn(log)
                bar.set_postfix(
                    loss=f"{log['loss']:.4f}", data_wait=f"{log['data_wait']:.0%}", refresh=False
                )
                bar.update()

    def _step_and_milestone(self, **kwargs: Any) -> dict[str, Any]:
        """A step, and the files of the milestone if it ends one; gives what there is to log."""
        start, self.waited = time.perf_counter(), 0.0
        loss = self.train_step(**kwargs)
        log = {
            "step": self.step,
            "loss": loss,
            "lr": self.opt.param_groups[0]["lr"],
            "data_wait": self.waited / (time.perf_counter() - start),
        }
        if self.step % self.save_and_sample_every == 0:
            milestone = self.step // self.save_and_sample_every
            # the checkpoint first: sampling takes long, and may be interrupted
            self.save(milestone)
            log["sample"] = str(self.save_sample(self.sample(), milestone))
        return log
