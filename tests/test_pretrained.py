"""A checkpoint file becomes a model."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, to_reference_state_dict
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.pretrained import load_diffusion

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"dim": 8, "dim_mults": (1,), "channels": 1, "attn_heads": 1, "init_kernel_size": 3}


def make_trainer(folder, unet=None, options=None, **diffusion):
    torch.manual_seed(0)
    write_moving_digits(folder / "clips", num_clips=2, image_size=24, num_frames=3)
    settings = {"image_size": 24, "num_frames": 3, "timesteps": 2, "loss_type": "l2", **diffusion}
    model = GaussianDiffusion(Unet3D(**SMALL) if unet is None else unet, **settings)
    options = {"train_batch_size": 2, "results_folder": folder, "device": "cpu", **(options or {})}
    return Trainer(model, folder / "clips", **options)


@pytest.fixture
def trainer(tmp_path):
    """A trainer with a checkpoint, `model-1.pt`, whose average differs from its weights."""
    trainer = make_trainer(tmp_path)
    trainer.train_step()
    trainer.train_step()
    trainer.save(1)
    return trainer


def seeded_sample(diffusion, count=2):
    torch.manual_seed(5)
    return diffusion.sample(batch_size=count, progress=False)


# Files of this library


def test_the_file_alone_gives_the_averaged_model(trainer, tmp_path):
    loaded = load_diffusion(tmp_path / "model-1.pt")
    assert torch.equal(seeded_sample(loaded), seeded_sample(trainer.ema_model.eval()))
    assert loaded.config == trainer.model.config
    assert not loaded.training


def test_the_last_weights_can_be_asked_for(trainer, tmp_path):
    loaded = load_diffusion(str(tmp_path / "model-1.pt"), averaged=False)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not torch.equal(seeded_sample(loaded), seeded_sample(trainer.ema_model))


@pytest.mark.usefixtures("trainer")
def test_arguments_override_settings_of_the_file(tmp_path):
    path = tmp_path / "model-1.pt"
    loaded = load_diffusion(path, image_size=(8, 16), num_frames=5, use_dynamic_thres=True)
    assert seeded_sample(loaded).shape == (2, 1, 5, 8, 16)
    assert loaded.use_dynamic_thres
    assert loaded.loss_type == "l2"
    with pytest.raises(TypeError, match="tempo"):
        load_diffusion(path, tempo=3)
    with pytest.raises(ValueError, match=r"the tensors in .* must fit .* timesteps"):
        load_diffusion(path, timesteps=3)


KINDS = [
    {"objective": "pred_v", "beta_schedule": "continuous_cosine", "timesteps": np.int64(4)},
    {"objective": "pred_x_start", "beta_schedule": "sigmoid", "min_snr_gamma": np.float64(5)},
    {"beta_schedule": "linear", "sampling_timesteps": np.int64(2)},
    {"beta_schedule": torch.tensor([0.1, 0.9]), "cond_drop_prob": np.float32(0.5)},
]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_objective_and_schedule_come_back(tmp_path, kind):
    trainer = make_trainer(tmp_path, Unet3D(**{**SMALL, "dim": np.int64(8)}), **kind)
    trainer.train_step()
    trainer.save(1)
    path = tmp_path / "model-1.pt"
    loaded = load_diffusion(path)
    expected = seeded_sample(trainer.ema_model.eval())
    assert torch.equal(seeded_sample(loaded), expected)
    assert loaded.config == trainer.model.config
    trainer.load(path)
    # the weights themselves tell it where no config does
    state = torch.load(path, weights_only=True)
    torch.save(to_reference_state_dict(state), tmp_path / "theirs.pt")
    loaded = load_diffusion(tmp_path / "theirs.pt", image_size=24, num_frames=3)
    assert torch.equal(seeded_sample(loaded), seeded_sample(load_diffusion(path)))


@pytest.mark.usefixtures("trainer")
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"objective": "pred_v"}, "objective, 'pred_v', got 'pred_noise'"),
        ({"beta_schedule": "linear"}, "beta_schedule, 'linear', got 'cosine'"),
        ({"beta_schedule": [0.1, 0.2]}, "beta_schedule, (0.1000"),
        ({"beta_schedule": "continuous_cosine"}, "beta_schedule, 'continuous_cosine', got 'cosine"),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path, other, message):
    path = tmp_path / "model-1.pt"
    text = re.escape(f"GaussianDiffusion: the state dict must have the model's {message}")
    with pytest.raises(ValueError, match=text):
        load_diffusion(path, **other)
    trainer = make_trainer(tmp_path, **other)
    with pytest.raises(ValueError, match=text):
        trainer.load(1)
    with pytest.raises(ValueError, match=text):
        trainer.load(path)


class OwnNetwork(nn.Module):
    """A denoiser that is no Unet3D."""

    channels = 1

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, time, cond=None):
        return x * self.scale


def test_a_network_of_the_users_own_is_an_error(tmp_path):
    make_trainer(tmp_path, OwnNetwork()).save(1)
    with pytest.raises(ValueError, match=r"must be a Unet3D, got .* build it yourself"):
        load_diffusion(tmp_path / "model-1.pt")


# Files of the reference


@pytest.mark.parametrize("version", ["0.7.0", "0.6.3"])
def test_the_references_files_give_its_samples(version):
    recorded = torch.load(GOLDEN / f"trainer_{version}.pt", weights_only=True)
    path = GOLDEN / f"reference_results_{version}" / "model-2.pt"
    loaded = load_diffusion(path, image_size=16, num_frames=4)
    torch.testing.assert_close(
        seeded_sample(loaded), recorded["ema_sample_seed_5_batch_2"], atol=1e-4, rtol=0
    )
    assert loaded.num_timesteps == recorded["diffusion"]["timesteps"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "image_size and num_frames"),
        ({"num_frames": 4}, "image_size"),
        ({"image_size": 16}, "num_frames"),
    ],
)
def test_the_references_files_need_a_size(given, missing):
    path = GOLDEN / "reference_results_0.7.0" / "model-2.pt"
    with pytest.raises(ValueError, match=f"holds no size .*; pass {missing}, as in training"):
        load_diffusion(path, **given)


def test_a_file_written_for_the_reference_comes_back(trainer, tmp_path):
    state = torch.load(tmp_path / "model-1.pt", weights_only=True)
    torch.save(to_reference_state_dict(state), tmp_path / "theirs.pt")
    loaded = load_diffusion(tmp_path / "theirs.pt", image_size=24, num_frames=3)
    assert torch.equal(seeded_sample(loaded), seeded_sample(trainer.ema_model))


# Mistakes


def test_the_file_must_be_a_training_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint at"):
        load_diffusion(tmp_path / "model-1.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "bare.pt")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"config.json must be the JSON file of a model"):
        load_diffusion(tmp_path)
    with pytest.raises(ValueError, match="expected a checkpoint with the entries"):
        load_diffusion(tmp_path / "bare.pt")


@pytest.mark.parametrize("device", ["nonsense", "cpu:x"])
def test_the_device_must_exist(tmp_path, device):
    message = f"device must be one that this machine has, got {device!r}.*; leave it out"
    with pytest.raises(ValueError, match=message):
        load_diffusion(tmp_path / "model-1.pt", device=device)


@pytest.mark.usefixtures("trainer")
def test_resuming_another_model_names_what_differs(tmp_path):
    path = tmp_path / "model-1.pt"
    again = make_trainer(tmp_path)
    again.load(path)
    assert again.step == 2
    # without those that weights don't depend on
    others = {"sampling_timesteps": 1, "cond_drop_prob": 0.5, "loss_type": "l1"}
    wider = make_trainer(tmp_path, Unet3D(**{**SMALL, "dim": 16}), timesteps=3, **others)
    expected = "got dim 16 instead of 8, timesteps 3 instead of 2; pass the same settings"
    with pytest.raises(ValueError, match=re.escape(expected)):
        wider.load(path)
    with pytest.raises(
        ValueError, match=r"the model must be that of the checkpoint .* Unexpected key"
    ):
        wider.load(GOLDEN / "reference_results_0.7.0" / "model-2.pt")


def test_one_of_several_averages_is_chosen_by_its_decay(tmp_path):
    options = {"ema_decay": (0.9, 0.5), "step_start_ema": 0, "update_ema_every": 1}
    trainer = make_trainer(tmp_path, options=options)
    trainer.train_step()
    trainer.train_step()
    trainer.save(1)
    path = tmp_path / "model-1.pt"
    expected = {d: seeded_sample(model) for d, model in trainer.averages.models.items()}
    assert not torch.equal(expected[0.9], expected[0.5])
    assert torch.equal(seeded_sample(load_diffusion(path)), expected[0.9])
    for decay, videos in expected.items():
        assert torch.equal(seeded_sample(load_diffusion(path, averaged=decay)), videos)
    with pytest.raises(ValueError, match=r"which holds 0\.9, 0\.5, got 0\.7; give one of them"):
        load_diffusion(path, averaged=0.7)
    reference = GOLDEN / "reference_results_0.7.0" / "model-2.pt"
    with pytest.raises(ValueError, match=r"which holds one of unknown decay, got 0\.5"):
        load_diffusion(reference, averaged=0.5, image_size=8, num_frames=2)


@pytest.mark.usefixtures("trainer")
def test_a_results_folder_stands_for_its_newest_checkpoint(tmp_path):
    expected = seeded_sample(load_diffusion(tmp_path / "model-1.pt"))
    assert torch.equal(seeded_sample(load_diffusion(tmp_path)), expected)


@pytest.mark.parametrize(
    ("part", "change", "got"),
    [
        ("unet", {"blocks_per_level": 10**9}, "must build a Unet3D, got a network of"),
        ("unet", {"dim": "8"}, "must build a Unet3D, got Unet3D: dim must be a whole number"),
        (
            "diffusion",
            {"timesteps": 10**11},
            "must build a Unet3D, got a diffusion of 100000000000",
        ),
        ("diffusion", {"min_snr_gamma": 10**400}, "must fit the model .* int too large"),
    ],
)
def test_settings_that_are_not_those_of_the_weights(trainer, tmp_path, part, change, got):
    file = tmp_path / "model-1.pt"
    state = torch.load(file, weights_only=True)
    state["config"][part] |= change
    # one number that stands for many is no larger file
    state["ema"] = {**state["ema"], "more": torch.zeros(1).expand(10**6, 10**6)}
    torch.save(state, file)
    with pytest.raises(ValueError, match=f"^load_diffusion: the [^\n]*{got}"):
        load_diffusion(file)


@pytest.mark.usefixtures("trainer")
def test_a_class_named_by_half_an_emoji_is_shown(tmp_path, capsys):
    file = tmp_path / "model-1.pt"
    state = torch.load(file, weights_only=True)
    state["config"]["clips"]["class_names"] = ("cat \ud83d",)
    torch.save(state, file)
    assert main(["info", str(file)]) is None
    assert "cat \\ud83d" in capsys.readouterr().out
