"""What an earlier version of this library wrote loads, gives the same and goes on."""

import shutil
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion

FILES = Path(__file__).parent / "golden" / "own_0.8.0"


@pytest.fixture
def expected():
    return torch.load(FILES / "expected.pt", weights_only=True)


def samples_of(diffusion):
    return diffusion.sample(labels=[0, 1], cond_scale=2.0, seed=5, progress=False)


def test_a_state_dict_with_every_kind_of_condition():
    record = torch.load(FILES / "unet.pt", weights_only=True)
    unet = Unet3D(**record["config"]).eval()
    unet.load_state_dict(record["state_dict"])
    assert unet.state_dict().keys() == record["state_dict"].keys()
    inputs = dict(record["inputs"])
    x, time = inputs.pop("x"), inputs.pop("time")
    with torch.no_grad():
        guided = unet.forward_with_cond_scale(x, time, cond_scale=3.0, **inputs)
        torch.testing.assert_close(unet(x, time, **inputs), record["output"])
        torch.testing.assert_close(guided, record["output_cond_scale_3"])


def assert_samples_close(samples, expected):
    """Equal up to what all steps of a sampler make of another order of sums."""
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-4)


def test_a_shared_folder_samples_the_same(expected):
    diffusion = GaussianDiffusion.from_pretrained(FILES / "model")
    assert_samples_close(samples_of(diffusion), expected["samples"])


def test_a_training_file_samples_the_same(expected):
    diffusion = load_diffusion(FILES / "run" / "model-1.pt")
    assert_samples_close(samples_of(diffusion), expected["samples"])


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path, expected):
    shutil.copy(FILES / "run" / "model-1.pt", tmp_path)
    trainer = Trainer(
        load_diffusion(FILES / "run" / "model-1.pt"),
        FILES / "clips",
        conditions="label",
        results_folder=tmp_path,
        train_batch_size=2,
        train_num_steps=4,
        gradient_accumulate_every=1,
        save_and_sample_every=4,
        num_sample_rows=1,
        step_start_ema=1,
        update_ema_every=1,
        ema_decay=(0.9, 0.5),
        lr_schedule="cosine",
        train_lr=1e-3,
        held_out=0,
        sample_conditions={"labels": [1]},
        num_workers=0,
        device="cpu",
        seed=3,
        resume="auto",
    )
    assert trainer.step == 2
    trainer.train()
    for model, after in ((trainer.model, "model_after_4"), (trainer.ema_model, "ema_after_4")):
        state = model.state_dict()
        for name, tensor in expected[after].items():
            torch.testing.assert_close(
                state[name], tensor, msg=lambda text, name=name: f"{name}: {text}"
            )
