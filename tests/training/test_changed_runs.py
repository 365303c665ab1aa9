"""Runs that go on with other settings, and those whose parts are a user's own."""

from functools import partial

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.training.checkpoint import list_checkpoints, newest
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint


def names(folder):
    return sorted(path.name for path in list_checkpoints(folder))


# Names and steps


def test_another_distance_of_milestones_continues_from_the_last_step(make_trainer, tmp_path):
    results = tmp_path / "results"
    make_trainer(train_num_steps=8, save_and_sample_every=2, keep_last=1).train()
    assert names(results) == ["model-4.pt"]
    longer = {"save_and_sample_every": 5, "keep_last": 1, "resume": "auto"}
    make_trainer(train_num_steps=10, **longer).train()
    assert names(results) == ["model-2.pt"]
    assert make_trainer(train_num_steps=12, **longer).step == 10


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
def test_milestones_of_another_distance_take_no_place(make_trainer, tmp_path, before, after):
    results = tmp_path / "results"
    make_trainer(train_num_steps=8, save_and_sample_every=before).train()
    old = {path.name: path.read_bytes() for path in results.iterdir() if path.suffix != ".jsonl"}
    # a foreign folder, and a foreign file, are no place either
    (results / "model-5.pt").mkdir()
    for steps in (12, 16):
        trainer = make_trainer(train_num_steps=steps, save_and_sample_every=after, resume="auto")
        trainer.train()
    assert {name: (results / name).read_bytes() for name in old} == old
    steps = sorted(read_checkpoint(path)["step"] for path in list_checkpoints(results))
    assert steps == sorted({*range(before, 9, before), *range(8 + after, 17, after)})
    taken = results / f"model-{12 // after}-step12.pt"
    assert taken.exists() == (12 // after <= 8 // before)
    assert make_trainer(resume="auto").step == 16
    trainer.load(12 // after)
    assert trainer.step == 12
    for ending in ("gif", "npy"):
        assert len(list(results.glob(f"*.{ending}"))) == len(steps)


def test_samples_whose_checkpoint_is_gone_are_not_replaced(make_trainer, tmp_path):
    results = tmp_path / "results"
    make_trainer(train_num_steps=8, save_and_sample_every=2, keep_last=1).train()
    old = (results / "2.npy").read_bytes(), (results / "2.gif").read_bytes()
    make_trainer(train_num_steps=10, save_and_sample_every=5, keep_last=1, resume="auto").train()
    assert names(results) == ["model-2.pt"]
    assert ((results / "2.npy").read_bytes(), (results / "2.gif").read_bytes()) == old
    assert (results / "2-step10.gif").exists()
    assert np.load(results / "2-step10.npy").shape == np.load(results / "2.npy").shape


def test_a_new_run_leaves_an_old_ones_samples_aside(make_trainer, tmp_path):
    results = tmp_path / "results"
    make_trainer(train_num_steps=4, keep_last=1).train()
    old = (results / "1.npy").read_bytes()
    (results / "7.gif").write_bytes(b"a picture of the user's")
    make_trainer(train_num_steps=2, train_lr=1.0).train()
    assert (results / "earlier-1" / "1.npy").read_bytes() == old
    assert (results / "earlier-1" / "2.gif").exists()
    assert sorted(path.name for path in results.glob("*.gif")) == ["1.gif", "7.gif"]


def test_a_new_run_leaves_an_old_ones_checkpoints_aside(make_trainer, tmp_path, caplog):
    results = tmp_path / "results"
    make_trainer(train_num_steps=4).train()
    again = make_trainer(train_num_steps=3, save_every=1)
    again.train()
    assert newest(results).name == "model-1.5.pt"
    assert names(results / "earlier-1") == ["model-1.pt", "model-2.pt"]
    assert "of later steps than 0" in caplog.text
    again.load(1)
    again.train()
    assert make_trainer(resume="auto").step == 3


def test_a_name_of_the_user_is_found_again(make_trainer):
    trainer = make_trainer()
    trainer.step = 3
    trainer.save("final")
    trainer.step = 0
    trainer.load("final")
    assert trainer.step == 3


def test_a_state_that_could_not_be_read_is_refused_when_it_is_written(make_trainer, tmp_path):
    class WithHistory(Trainer):
        def checkpoint_state(self):
            return super().checkpoint_state() | {"history": np.arange(3.0)}

    with pytest.raises(TypeError, match=r"model-1\.pt must hold tensors and plain values only"):
        make_trainer(WithHistory).save(1)
    assert list((tmp_path / "results").iterdir()) == []


# Optimizers and schedules


def test_another_optimizer_is_refused(make_trainer):
    make_trainer(train_num_steps=2).train()
    other = make_trainer(optimizer=partial(torch.optim.SGD, lr=0.1), train_lr=1e-4)
    with pytest.raises(ValueError, match=r"model-1\.pt .*, got SGD instead of Adam; pass"):
        other.load(1)


def test_new_settings_of_the_optimizer_take_effect(make_trainer):
    first = make_trainer(train_num_steps=2, optimizer="adamw", weight_decay=0.01)
    first.train()
    again = make_trainer(optimizer="adamw", weight_decay=0.1, betas=(0.5, 0.9), train_lr=1e-3)
    again.load(1)
    matrices, vectors = again.opt.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {group["betas"] for group in again.opt.param_groups} == {(0.5, 0.9)}
    assert {group["lr"] for group in again.opt.param_groups} == {1e-3}


def test_a_rate_set_by_hand_continues(make_trainer):
    first = make_trainer(train_num_steps=2)
    first.opt.param_groups[0]["lr"] = 0.5
    first.train()
    again = make_trainer(train_lr=2e-2)
    again.load(1)
    assert again.opt.param_groups[0]["lr"] == 0.5


def chained(optimizer):
    schedules = torch.optim.lr_scheduler
    parts = [schedules.ConstantLR(optimizer, 0.5, 3), schedules.ExponentialLR(optimizer, 0.5)]
    return schedules.SequentialLR(optimizer, parts, milestones=[3])


def test_a_chain_of_schedules_is_resumed(make_trainer, tmp_path):
    found = []
    log = lambda line: found.append(line["lr"])  # noqa: E731
    options = {"lr_schedule": chained, "train_num_steps": 6}
    make_trainer(**options, results_folder=tmp_path / "whole").train(log_fn=log)
    whole, found[:] = list(found), []
    make_trainer(**{**options, "train_num_steps": 4}).train(log_fn=log)
    make_trainer(**options, resume="auto").train(log_fn=log)
    assert found == whole
    assert len(set(whole)) > 2


def test_more_steps_stretch_the_schedule(make_trainer):
    trainer = make_trainer(train_num_steps=2, lr_schedule="linear")
    trainer.train()
    trainer.train_num_steps, rates = 4, []
    trainer.train(log_fn=lambda log: rates.append(log["lr"]))
    assert rates[0] > 0


# Parts of a user's own


def test_an_overridden_loss_gets_other_keys_of_the_items(make_trainer):
    class Masked(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return {"video": torch.rand(1, 3, 8, 8), "mask": torch.tensor(float(index))}

    seen = []

    class OwnLoss(Trainer):
        def make_dataset(self, folder, diffusion):
            return Masked()

        def compute_loss(self, videos, mask=None, **kwargs):
            seen.append(mask)
            return super().compute_loss(videos, **kwargs) * (1 + mask)

    trainer = make_trainer(OwnLoss, train_num_steps=2, validation_split=0.4)
    trainer.train()
    assert all(mask.shape in ((1,), (2,)) for mask in seen)
    plain = make_trainer(train_num_steps=2, validation_split=0.4)
    # the loss that is validated is the one that is trained
    assert trainer.validate()["validation_loss"] > plain.validate()["validation_loss"]
    assert trainer.model is trainer.parallel_model


def test_a_diffusion_with_the_references_p_losses_trains(clips, tmp_path):
    class Own(GaussianDiffusion):
        def p_losses(self, x_start, t, cond=None, noise=None, **kwargs):
            noise = torch.randn_like(x_start) if noise is None else noise
            x = self.q_sample(x_start=x_start, t=t, noise=noise)
            return (self.denoise_fn(x, t, cond=cond, **kwargs) - noise).abs().mean()

    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    diffusion = Own(unet, image_size=8, num_frames=3, timesteps=2)
    trainer = Trainer(
        diffusion,
        clips,
        train_batch_size=2,
        train_num_steps=2,
        num_sample_rows=1,
        validation_split=0.2,
        save_and_sample_every=2,
        results_folder=tmp_path,
        device="cpu",
    )
    trainer.train()
    assert trainer.step == 2
    assert not trainer.clip_draws.is_supported


def test_only_a_diffusion_can_be_trained(clips, tmp_path):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    with pytest.raises(TypeError, match=r"must be a GaussianDiffusion, got Unet3D; wrap the"):
        Trainer(unet, clips, results_folder=tmp_path)


@pytest.mark.parametrize("seed", [2**45, np.int64(3)])
def test_any_whole_number_is_a_seed(make_trainer, seed):
    trainer = make_trainer(seed=seed, train_num_steps=1)
    trainer.train()
    assert trainer.step == 1


def test_max_grad_norm_0_is_refused(make_trainer):
    with pytest.raises(ValueError, match="max_grad_norm must be above 0, got 0; leave it out"):
        make_trainer(max_grad_norm=0)


# Classes of a validation folder


@pytest.fixture
def classes(tmp_path):
    """Two folders of clips, of the classes a, b and c, and of b and c."""
    from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

    for folder, kinds in (("train", "abc"), ("held", "bc"), ("strange", "bd")):
        for kind in kinds:
            (tmp_path / folder / kind).mkdir(parents=True)
            for i in range(2):
                video_tensor_to_gif(torch.rand(1, 3, 8, 8), tmp_path / folder / kind / f"{i}.gif")
    return tmp_path


def labelled(classes, held):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, num_classes=3)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2)
    return Trainer(
        diffusion,
        classes / "train",
        conditions="label",
        validation_folder=classes / held,
        train_batch_size=2,
        results_folder=classes / "results",
        device="cpu",
        num_workers=0,
    )


def test_a_validation_folder_has_the_labels_of_training(classes):
    trainer = labelled(classes, "held")
    told = trainer.data.validation.with_trained_labels({"labels": torch.tensor([0, 1, -1])})
    assert told["labels"].tolist() == [1, 2, -1]
    seen = []
    trainer.model.denoise_fn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["labels"]), with_kwargs=True
    )
    trainer.validate()
    assert set(torch.cat(seen).tolist()) == {1, 2}


def test_a_class_that_is_not_trained_cannot_be_validated(classes):
    with pytest.raises(ValueError, match="that are trained on, a, b, c, got d; remove them"):
        labelled(classes, "strange")


def test_a_validation_folder_inside_the_clips_is_not_trained_on(make_trainer, clips):
    inside = clips / "held"
    inside.mkdir()
    for name in ("00.gif", "01.gif"):
        (clips / name).rename(inside / name)
    trainer = make_trainer(validation_folder=inside)
    assert {path.parent for path in trainer.ds.paths} == {clips}
    assert {path.parent for path in trainer.data.validation.dataset.paths} == {inside}


@pytest.mark.parametrize("resume", [True, 1])
def test_what_resume_takes(make_trainer, resume):
    with pytest.raises(ValueError, match=r"resume must be 'auto', 'never', a path or None, got"):
        make_trainer(resume=resume)


def test_a_part_of_a_folders_clips_is_split_by_files(make_trainer, tmp_path):
    from video_diffusion_pytorch.data.dataset import Dataset
    from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
    from video_diffusion_pytorch.training.splits import split_off

    for i in range(4):
        video_tensor_to_gif(torch.rand(1, 9, 8, 8), tmp_path / f"{i}.gif")
    clips = Dataset(tmp_path, 8, channels=1, num_frames=3, clip_start="all")
    part = torch.utils.data.Subset(clips, range(1, 11))
    trained, apart = split_off(part, 0.5)
    assert sorted(trained + apart) == list(range(10))
    files = [{clips.paths[part.indices[i]] for i in side} for side in (trained, apart)]
    assert not files[0] & files[1]


def test_a_model_in_half_precision_is_refused_before_training(clips, tmp_path):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2).bfloat16()
    with pytest.raises(ValueError, match=r"float32 or float64, .*got torch\.bfloat16; use .float"):
        Trainer(diffusion, clips, results_folder=tmp_path, device="cpu")


def test_float16_needs_a_loss_scale(make_trainer):
    with pytest.raises(ValueError, match="on a CPU mixed_precision must be 'bf16' or 'no', got"):
        make_trainer(mixed_precision="fp16")
