"""What the two processes of test_processes.py run: `process_script.py FOLDER`."""

import datetime
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.distributed import distributed_c10d as c10d

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork

STEPS = 6


class Recording(Trainer):
    """Remembers which clips its losses were of, and what they looked like."""

    def next_batch(self):
        batch = super().next_batch()
        self.positions = batch.positions
        return batch

    def compute_loss(self, videos, **kwargs):
        if not self.model.training:
            return super().compute_loss(videos, **kwargs)
        if not hasattr(self, "seen"):
            self.seen, self.looks, self.told = [], [], []
        self.seen.append(self.data.names(self.positions))
        self.told += kwargs["drop_mask"].int().tolist()
        # the labels too: they go with the clips
        self.looks.append(videos.float().mean((1, 2, 3, 4)) + 1000 * kwargs["labels"])
        return super().compute_loss(videos, **kwargs)


class NotFiniteOnOne(Recording):
    """Process 1 has a bad loss in the second step."""

    def compute_loss(self, videos, **kwargs):
        losses = super().compute_loss(videos, **kwargs)
        return losses * torch.nan if self.process == 1 and self.step == 1 else losses


class PastTheExchange(Recording):
    def compute_loss(self, videos, **kwargs):
        return self.model(videos, **kwargs)


class Slow(Recording):
    """The main process takes longer than the others may wait; then one has no more clips."""

    def make_dataset(self, folder, diffusion):
        if self.is_main:
            time.sleep(5)
        return super().make_dataset(folder, diffusion)

    def next_batch(self):
        if self.process == 1 and self.step == 2:
            raise ValueError("the disk of process 1 is gone")
        return super().next_batch()


def brightness(videos):
    return videos.mean((2, 3, 4))


def make(folder, name, trainer_class=Recording, clips="clips", **options):
    """A small trainer with most of what there is, the same in any number of processes."""
    torch.manual_seed(1)
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, num_classes=3)
    diffusion = GaussianDiffusion(unet, image_size=(8, 6), num_frames=2, timesteps=4)
    options = {
        "train_batch_size": 2,
        "gradient_accumulate_every": 2,
        "train_num_steps": STEPS,
        "save_and_sample_every": 3,
        "num_sample_rows": 2,
        "train_lr": 1e-3,
        "lr_schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "ema_decay": (0.9, 0.99),
        "step_start_ema": 2,
        "update_ema_every": 1,
        "conditions": "label",
        "crop": "random",
        "clip_start": "random",
        "horizontal_flip": True,
        "held_out": 1,
        "validation_split": 0.2,
        "validation_clips": 3,
        "validate_every": STEPS,
        "evaluate_every": STEPS,
        "evaluation": Evaluation(
            features=FeatureNetwork(brightness, name="brightness", channels=None),
            count=5,
            max_batch=2,
        ),
        "log_every": 1,
        "num_workers": 0,
        "device": "cpu",
        "seed": 3,
        **options,
    }
    return trainer_class(diffusion, folder / clips, results_folder=folder / name, **options)


def run(trainer, after_step=lambda trainer, log: None):
    """Trains; gives what came out, and how it ended."""
    logs, end = [], None

    def note(log):
        logs.append(log)
        after_step(trainer, log)

    try:
        trainer.train(prob_focus_present=0.3, log_fn=note)
    except SystemExit as error:
        end = error.code
    return {
        "step": trainer.step,
        "end": end,
        "logs": [{n: v for n, v in log.items() if n != "data_wait"} for log in logs],
        "seen": trainer.seen,
        "told": trainer.told,
        "looks": torch.stack(trainer.looks),
        "weights": weights(trainer.model),
        "averages": [weights(average) for average in trainer.averages.models.values()],
        "moments": torch.cat(
            [
                whole(state[name]).flatten()
                for state in trainer.opt.state_dict()["state"].values()
                for name in ("exp_avg", "exp_avg_sq")
            ]
        ),
        "process": trainer.process,
        "is_main": trainer.is_main,
        "resumed_from": trainer.resumed_from and trainer.resumed_from.name,
    }


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights(model):
    return torch.cat([whole(p).detach().flatten() for p in model.parameters()])


def failure(act):
    """What is raised, as text."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def folder_is_gone(trainer):
    """What saving raises when the main process can't write."""
    # both look whether they can write there when a trainer is made
    trainer.accelerator.wait_for_everyone()
    if trainer.is_main:
        trainer.results_folder.rmdir()
    return failure(lambda: trainer.save(1))


# what is run


def tuned(folder, name, **options):
    """A run from the weights of another, of which some are frozen."""
    frozen = ("denoise_fn.downs.*", "*.label_emb.*")
    file = folder / "one" / "model-1.pt"
    options = {"ema_decay": "posthoc", "train_num_steps": 2, **options}
    return run(make(folder, name, init_from=file, freeze=frozen, **options))


def plain(folder):
    """Whole models, which exchange gradients."""
    found = {"whole": run(make(folder, "whole"))}
    found["split"] = run(
        make(folder, "split", split_batches=True, train_batch_size=4, train_num_steps=2)
    )

    def stop_one(trainer, log):
        if log["step"] == 3 and trainer.process == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    found["stopped"] = run(make(folder, "stopped"), stop_one)
    torch.manual_seed(100)
    random.seed(100)
    found["resumed"] = run(make(folder, "stopped", resume="auto"))
    found["of one"] = run(make(folder, "of-one", resume=folder / "one" / "model-1.pt"))
    found["tuned"] = tuned(folder, "tuned")
    found["bad"] = run(make(folder, "bad", NotFiniteOnOne, train_num_steps=3))
    found["past"] = failure(make(folder, "past", PastTheExchange).train)
    found["gone"] = folder_is_gone(make(folder, "gone"))
    found["missing"] = failure(lambda: make(folder, "missing", clips="no-clips"))
    found["odd"] = failure(lambda: make(folder, "odd", split_batches=True, train_batch_size=3))
    # the last, as one process leaves the other alone
    set_timeout = getattr(torch.distributed, "set_timeout", None) or c10d._set_pg_timeout
    set_timeout(datetime.timedelta(seconds=3))
    trainer = make(folder, "alone", Slow, save_and_sample_every=100)
    found["waited"] = len(trainer.ds)
    found["alone"] = failure(lambda: trainer.train(prob_focus_present=0.3))
    return found


def sharded(folder):
    """Each process has a part of the model."""
    found = {"whole": run(make(folder, "sharded", fsdp=True))}
    torch.manual_seed(100)
    path = folder / "sharded" / "model-1.sharded"
    found["resumed"] = run(make(folder, "sharded-resumed", fsdp=True, resume=path))
    path = folder / "one" / "model-1.pt"
    found["of one"] = run(make(folder, "sharded-of-one", fsdp=True, resume=path))
    found["tuned"] = tuned(folder, "tuned-sharded", fsdp=True)
    found["gone"] = folder_is_gone(make(folder, "gone-sharded", fsdp=True))
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    # plain last, as one process leaves the other alone at its end
    results = {"sharded": sharded(where), "plain": plain(where)}
    torch.save(results, where / f"{os.environ['RANK']}.pt")
