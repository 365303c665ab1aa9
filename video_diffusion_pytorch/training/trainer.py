"""The training loop: clips from a folder in, checkpoints and sample videos out."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.dataset import Dataset, SkipUnreadable
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.batches import Endless, EndlessShuffle, unpack_batch
from video_diffusion_pytorch.training.checkpoint import Resumable
from video_diffusion_pytorch.training.ema import EMA
from video_diffusion_pytorch.training.precision import make_accelerator
from video_diffusion_pytorch.training.samples import draw_samples, write_sample_grid


def noop(*args: Any, **kwargs: Any) -> None:
    """Logs nothing: the default of `Trainer.train`'s `log_fn`."""


class Trainer(Resumable):
    """Trains a `GaussianDiffusion` on a folder of clips.

    Writes `model-N.pt` and `N.gif` to the results folder at every N-th milestone. What it does is
    made of small methods, to be replaced in a subclass: `make_dataset`, `make_dataloader`,
    `make_optimizer`, `unpack_batch`, `compute_loss`, `sample`, `save_sample` and
    `checkpoint_state`.

    Args:
        diffusion_model: The diffusion to train; it is moved to the training device.
        folder: Where the clips are; gifs, at any depth.
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
        num_workers: Processes that read clips; 0 to read between the steps.

    Raises:
        ValueError: If an argument is outside its range.
        FileNotFoundError: If the folder is missing or holds no clips.

    Attributes:
        step: Number of optimizer steps done.
        model: The diffusion that is trained.
        ema_model: The diffusion with averaged weights, which draws the samples.
    """

    def __init__(
        self,
        diffusion_model: GaussianDiffusion,
        folder: str | os.PathLike[str],
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
        num_workers: int = 0,
    ) -> None:
        _check_positive(
            train_batch_size=train_batch_size,
            gradient_accumulate_every=gradient_accumulate_every,
            update_ema_every=update_ema_every,
            save_and_sample_every=save_and_sample_every,
            num_sample_rows=num_sample_rows,
        )
        self.batch_size = train_batch_size
        self.train_lr = train_lr
        self.train_num_steps = train_num_steps
        self.gradient_accumulate_every = gradient_accumulate_every
        self.amp = amp
        self.step_start_ema = step_start_ema
        self.update_ema_every = update_ema_every
        self.save_and_sample_every = save_and_sample_every
        self.num_sample_rows = num_sample_rows
        self.max_grad_norm = max_grad_norm
        self.num_workers = num_workers
        self.image_size = diffusion_model.image_size
        self.step = 0

        # data
        self.ds = self.make_dataset(folder, diffusion_model)
        self.order = EndlessShuffle(self.ds, seed=int(torch.randint(2**31, ())))
        self.dl = Endless(self.make_dataloader(SkipUnreadable(self.ds)))
        self._sample_cond: Any = None

        # model, average and optimizer
        self.accelerator = make_accelerator(amp, device)
        self.device = self.accelerator.device
        self.model = diffusion_model.to(self.device)
        self.ema = EMA(ema_decay)
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False)
        self.opt = self.accelerator.prepare(self.make_optimizer())

        self.results_folder = Path(results_folder)
        self.results_folder.mkdir(exist_ok=True, parents=True)

    # what a subclass may make differently

    def make_dataset(self, folder: str | os.PathLike[str], diffusion: GaussianDiffusion) -> Any:
        """The clips: a dataset whose items `unpack_batch` understands once they are collated."""
        return Dataset(
            folder,
            diffusion.image_size,
            channels=diffusion.channels,
            num_frames=diffusion.num_frames,
        )

    def make_dataloader(self, dataset: Any) -> Any:
        """The batches: shuffled, without end, from where training stopped before."""
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=self.order,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # its own generator: making the loader draws, and a resumed run makes it once more
            generator=torch.Generator().manual_seed(self.order.seed),
        )

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of `model`."""
        return torch.optim.Adam(self.model.parameters(), lr=self.train_lr)

    def unpack_batch(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The videos of a batch, and keywords of the diffusion's forward, such as `cond`."""
        return unpack_batch(batch)

    def compute_loss(self, videos: Tensor, **kwargs: Any) -> Tensor:
        """The loss of a micro-batch, in the training precision."""
        with self.accelerator.autocast():
            return self.model(videos, **kwargs)

    def sample(self) -> Tensor:
        """A milestone's samples, `(num_sample_rows ** 2, c, f, h, w)`, of the averaged model.

        The noise is the same at every milestone, and a conditional model gets the conditions of
        real clips. Training's random numbers are not touched.
        """
        count = self.num_sample_rows**2
        return draw_samples(
            self.ema_model, count, self.batch_size, self._sample_cond, self.order.seed
        )

    def save_sample(self, videos: Tensor, milestone: int) -> Path:
        """Writes the samples as a grid, `N.gif`."""
        path = self.results_folder / f"{milestone}.gif"
        write_sample_grid(videos, path, self.num_sample_rows, self.model.auto_normalize)
        return path

    # the average

    def reset_parameters(self) -> None:
        """Makes the average a copy of the weights."""
        self.ema_model.load_state_dict(self.model.state_dict())

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
            videos, conditions = self.unpack_batch(next(self.dl))
            self.order.position += len(videos)
            videos = videos.to(self.device, non_blocking=True)
            conditions = {
                name: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
                for name, value in conditions.items()
            }
            self._sample_cond = conditions.get("cond")
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
                the step's micro-batches), `lr`, and at a milestone `sample`, the gif's path.
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
                bar.set_postfix(loss=f"{log['loss']:.4f}", refresh=False)
                bar.update()

    def _step_and_milestone(self, **kwargs: Any) -> dict[str, Any]:
        """A step, and the files of the milestone if it ends one; gives what there is to log."""
        loss = self.train_step(**kwargs)
        log = {"step": self.step, "loss": loss, "lr": self.opt.param_groups[0]["lr"]}
        if self.step % self.save_and_sample_every == 0:
            milestone = self.step // self.save_and_sample_every
            # the checkpoint first: sampling takes long, and may be interrupted
            self.save(milestone)
            log["sample"] = str(self.save_sample(self.sample(), milestone))
        return log


def _check_positive(**arguments: int) -> None:
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(
                f"Trainer: {name} must be at least 1, got {value}; give a positive number"
            )
