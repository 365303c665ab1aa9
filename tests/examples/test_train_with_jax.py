"""The example under JAX against torch, with four simulated devices in a process of its own."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.docs_code import Page
from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="torchax needs Python 3.11, and the extra holds it from there",
)
PAGE = Page("jax.md")
SCRIPT = Path(__file__).with_name("jax_process.py")
# few layers and every condition; the training below has a network of two levels and all layers
UNET = {
    "dim": 8, "dim_mults": (1,), "channels": 2, "attn_heads": 2, "attn_dim_head": 8,
    "cond_dim": 4, "num_classes": 3, "frame_cond_dim": 5, "cond_channels": 3,
    "blocks_per_level": 1, "temporal_attn_levels": (),
}  # fmt: skip
DIFFUSION = {
    "image_size": (8, 12), "num_frames": 4, "timesteps": 10, "given_frames": 1, "loss_type": "l2",
    "objective": "pred_v", "min_snr_gamma": 5.0, "value_range": (-2.0, 3.0),
}  # fmt: skip
STEPS = 3
# compile quickly rather than well
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false"
)


def make_diffusion():
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(Unet3D(**UNET), **DIFFUSION)
    for parameter in diffusion.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return diffusion


def make_batch():
    b, images = 4, 2
    return {
        "video": torch.rand(b, 2, 4, 8, 12) * 5 - 2,
        "t": torch.randint(10, (b,)),
        "noise": torch.randn(b, 2, 4 + images, 8, 12),
        "drop_mask": torch.tensor([False, True, False, False]),
        "focus_present_mask": torch.tensor([False, False, True, False]),
        "cond": torch.randn(b, 4),
        "labels": torch.tensor([0, 2, -1, 1]),
        "frame_cond": torch.randn(b, 4, 5),
        "images": torch.rand(b, 2, images, 8, 12) * 5 - 2,
        "image_conditions": {"labels": torch.randint(3, (b, images))},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the process is given, and after it what it has found."""
    folder = tmp_path_factory.mktemp("jax")
    diffusion = make_diffusion()
    given = {"unet": UNET, "diffusion": DIFFUSION, "weights": diffusion.state_dict()}
    torch.save({**given, "batches": [make_batch() for _ in range(STEPS)]}, folder / "given.pt")
    (folder / "clips").mkdir()
    for i in range(6):
        video_tensor_to_gif(torch.rand(1, 3, 8, 8), folder / f"clips/{i}.gif")
    command = [sys.executable, "-W", "error", SCRIPT, folder]
    environment = {**os.environ, "XLA_FLAGS": XLA_FLAGS, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return torch.load(folder / "found.pt")


@pytest.fixture(scope="module")
def in_torch(folder):
    """Losses, gradients and weights of the same steps by torch."""
    diffusion = make_diffusion()
    trained = {name: p for name, p in diffusion.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-4)
    average = copies(trained)
    steps = []
    for batch in torch.load(folder / "given.pt")["batches"]:
        loss = diffusion(batch.pop("video"), **batch)
        loss.backward()
        optimizer.step()
        average = {
            name: torch.lerp(average[name], p.detach(), 0.005) for name, p in trained.items()
        }
        step = {"loss": loss.item(), "weights": copies(trained), "average": average}
        steps.append({**step, "gradients": {name: p.grad for name, p in trained.items()}})
        optimizer.zero_grad()  # which leaves the gradients of this step to the dict above
    return steps


def copies(tensors):
    return {name: value.detach().clone() for name, value in tensors.items()}


def farthest(found, expected):
    """The largest difference within a tensor, as a share of the tensor's largest element."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        for name, value in expected.items()
    )


def steps_apart(found, expected, lr):
    """Root mean square of the differences, in units of Adam's steps.

    Adam divides a gradient by its size. Where the gradient is all rounding, its step is, too: such
    weights are few, and may be as far apart as steps are long.
    """
    assert found.keys() == expected.keys()
    differences = [(found[name] - value).flatten() for name, value in expected.items()]
    return torch.cat(differences).square().mean().sqrt().item() / lr


# The network and a step


def test_losses_are_torchs(found, in_torch):
    assert found["page"]["losses"] == pytest.approx([step["loss"] for step in in_torch], rel=1e-5)


def test_gradients_are_torchs(found, in_torch):
    # Adam's first mean is a tenth of the first gradient
    gradients = {name: 10 * mean for name, mean in found["page"]["states"][0]["mean"].items()}
    assert farthest(gradients, in_torch[0]["gradients"]) < 2e-5


@pytest.mark.parametrize("part", ["weights", "average"])
def test_steps_of_adam_are_torchs(part, found, in_torch):
    for state, step in zip(found["page"]["states"], in_torch, strict=True):
        assert steps_apart(state[part], step[part], lr=1e-4) < 0.002


def test_a_step_is_compiled_once(found):
    assert found["page"]["compiled"] == 1


def test_devices_share_a_batch(found):
    # of which torch's gradients above are those of one device
    assert found["page"]["shares"] == [1, 1, 1, 1]


def test_it_goes_back_to_torch(found, folder):
    model = GaussianDiffusion.from_pretrained(folder / "films-model")
    first = found["page"]["states"][0]["average"]
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in first.items())


def test_draws_of_a_batch(found):
    drawn = found["page"]["drawn"]
    assert drawn["t"].shape == drawn["drop_mask"].shape == (4,)
    assert drawn["noise"].shape == drawn["video"].shape


# What is refused


def test_a_batch_that_devices_cannot_share(found):
    assert re.search("multiple of the 4 devices, got 3 clips; change", found["page"]["odd batch"])


def test_a_model_that_draws(found):
    message = "hold all that is random.*got .*video.*the same in each step; add"
    assert re.search(message, found["page"]["undrawn"])


def test_more_devices_than_there_are(found):
    assert re.search("from 1 to 4.*got 5; leave it out", found["too many devices"])


def test_removed_operators_are_named_during_the_import_only(found):
    assert "dim_Dimname" in found["removed"]


# A whole training


@pytest.fixture(scope="module")
def trainer(folder):
    """The same training by a Trainer."""
    torch.manual_seed(5)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3)
    trainer = Trainer(
        diffusion, folder / "clips", results_folder=folder / "trainer", device="cpu", seed=5,
        train_batch_size=4, gradient_accumulate_every=1, train_num_steps=STEPS, train_lr=1e-2,
        ema_decay=0.5, step_start_ema=0, update_ema_every=1, num_workers=0, held_out=0,
        save_and_sample_every=100, num_sample_rows=1,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_it_trains_as_a_trainer(folder, trainer):
    for averaged, model in ((False, trainer.model), (True, trainer.ema_model)):
        weights = load_diffusion(folder / "results", averaged=averaged).state_dict()
        assert steps_apart(weights, model.state_dict(), lr=1e-2) < 0.002


def test_it_says_how_it_goes(found, trainer):
    first, *steps = found["printed"].splitlines()
    assert first == "4 x cpu"
    said = [re.fullmatch(r"step (\d): loss ([\d.]+)", line).groups() for line in steps]
    assert [number for number, _ in said] == ["1", "2", "3"]
    one, *others = (float(loss) for _, loss in said)
    # the Trainer's second entry is the mean of steps 2 and 3
    lines = (trainer.results_folder / "metrics.jsonl").read_text().splitlines()
    expected = [json.loads(line)["loss"] for line in lines]
    assert [one, sum(others) / 2] == pytest.approx(expected, rel=1e-5)


def test_checkpoints_sample(folder, tmp_path, monkeypatch):
    written = sorted(path.name for path in (folder / "results").iterdir())
    assert written == ["model-2.pt", "model-3.pt"]
    home = tmp_path / "results" / "jax"
    home.mkdir(parents=True)
    shutil.copy(folder / "results/model-3.pt", home / "model-1000.pt")
    # as on the page, in two steps
    quick = partial(load_diffusion, sampling_timesteps=2)
    monkeypatch.setattr("video_diffusion_pytorch.load_diffusion", quick)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in PAGE.blocks("2. Train"):
        PAGE.run(block, names)
    assert names["videos"].shape == (4, 1, 3, 8, 8)
    assert names["videos"].isfinite().all()


def test_the_pages_command(found):
    (command,) = PAGE.commands("2. Train")
    assert command[:2] == ["python", "examples/train_with_jax.py"]
    assert found["batch size"] == 32


def test_a_trainer_goes_on(folder, trainer, caplog):
    with caplog.at_level(logging.WARNING):
        trainer.load(folder / "results/model-3.pt")
    assert trainer.step == STEPS
    assert "holds no optimizer state" in caplog.text
