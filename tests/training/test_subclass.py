"""A subclass of Trainer that replaces each method that may be replaced."""

import shutil

import torch

from video_diffusion_pytorch import Trainer
from video_diffusion_pytorch.training.metrics import read_metrics

METHODS = (
    *("make_dataset", "make_image_dataset", "make_dataloader", "unpack_batch", "make_optimizer"),
    *("make_schedule", "compute_loss", "sample", "save_sample", "checkpoint_state"),
    *("reset_parameters", "step_ema", "save", "load", "train", "train_step", "validate"),
)


class Own(Trainer):
    """Does what the Trainer does, and notes which methods were called with which model."""

    def __init__(self, *args, **kwargs):
        self.calls, self.validated = [], []
        super().__init__(*args, **kwargs)

    def compute_loss(self, videos, **kwargs):
        self.calls.append("compute_loss")
        if not self.model.training:
            # the list is that of the trainer, also on a copy of it
            self.validated.append(self.model)
        # as the documentation says: by what exchanges the gradients
        with self.accelerator.autocast():
            return self.parallel_model(videos, **kwargs)


def noting(name):
    method = getattr(Trainer, name)

    def noted(self, *args, **kwargs):
        self.calls.append(name)
        return method(self, *args, **kwargs)

    return noted


for name in METHODS:
    if name != "compute_loss":
        setattr(Own, name, noting(name))


def test_all_methods_of_a_subclass_are_called(make_trainer, clips, tmp_path):
    options = {"validation_split": 0.25, "image_frames": 1, "image_folder": clips, "seed": 1}
    trainer = make_trainer(Own, **options)
    trainer.train()
    trainer.load(-1)
    trainer.reset_parameters()
    assert set(trainer.calls) == set(METHODS)
    # a validation sees each model as `model`, and leaves the trainer's in place
    assert {id(m) for m in trainer.validated} == {id(trainer.model), id(trainer.ema_model)}
    assert trainer.parallel_model is trainer.model

    plain = make_trainer(results_folder=tmp_path / "plain", **options)
    plain.train()
    names = ("loss", "validation_loss", "validation_loss_ema_0.995")
    found, expected = (
        [[line.get(name) for name in names] for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (trainer.results_folder, plain.results_folder)
    )
    assert found == expected


def test_attributes_of_the_reference(make_trainer):
    trainer = make_trainer(amp=False)
    assert trainer.step == 0
    assert trainer.model.image_size == trainer.image_size == 8
    assert trainer.ema_model is not trainer.model
    assert trainer.ema.beta == 0.995
    assert isinstance(trainer.opt, torch.optim.Optimizer)
    assert next(trainer.dl).shape == (2, 1, 3, 8, 8)
    assert len(trainer.ds) == 12
    assert trainer.scaler is None
    names = ("batch_size", "gradient_accumulate_every", "train_num_steps", "step_start_ema")
    assert [getattr(trainer, name) for name in names] == [2, 2, 4, 2]
    names = ("update_ema_every", "save_and_sample_every", "num_sample_rows", "max_grad_norm")
    assert [getattr(trainer, name) for name in names] == [1, 2, 2, None]
    assert (trainer.amp, trainer.results_folder.name) == (False, "results")


def test_a_validation_dataset_is_made_with_other_options(make_trainer, clips, tmp_path):
    class Options(Trainer):
        def make_dataset(self, folder, diffusion):
            seen.append((folder, self.data_options["value_range"]))
            return super().make_dataset(folder, diffusion)

    seen = []
    others = shutil.copytree(clips, tmp_path / "others")
    trainer = make_trainer(Options, validation_folder=others, value_range="fit")
    units = trainer.model.config["value_range"]
    assert seen == [(clips, "fit"), (others, units)]
    assert trainer.data_options["value_range"] == "fit"
