"""A checkpoint in words."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, __version__
from video_diffusion_pytorch.cli.info import describe_checkpoint
from video_diffusion_pytorch.training.checkpoint_file import write_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


def state_of(unet=None, num_processes=2, **diffusion):
    """The state of a run with a small network."""
    unet = unet or Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=1)
    options = {"image_size": (16, 24), "num_frames": 4, "timesteps": 20, **diffusion}
    model = GaussianDiffusion(unet, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.05)
    return {
        "step": 1200,
        "model": model.state_dict(),
        "ema": model.state_dict(),
        "emas": {"0.9999": model.state_dict()},
        "optimizer": optimizer.state_dict(),
        "scheduler": {},
        "scaler": {},
        "config": {
            "unet": getattr(unet, "config", None),
            "diffusion": model.config,
            "class_names": (),
        },
        "version": __version__,
        "random_states": [{"torch": torch.zeros(3, dtype=torch.uint8)}] * num_processes,
        "data": {"seed": 5, "position": 250, "clips": 100},
        "ema_decays": [0.995, 0.9999],
        "losses": {"training": 0.123456, "validation": None},
    }


@pytest.fixture
def describe(tmp_path):
    """Writes a state and returns its description: the title, and the text of each property."""

    def run(state, path=None):
        path = path or tmp_path / "model-3.pt"
        write_checkpoint(state, path)
        title, *lines = describe_checkpoint(path)
        return title, dict(re.fullmatch(r"  (\w+) +(.*)", line).groups() for line in lines)

    return run


def test_a_checkpoint_in_words(describe, tmp_path):
    title, lines = describe(state_of())
    size = (tmp_path / "model-3.pt").stat().st_size
    assert title == (
        f"{tmp_path}/model-3.pt: checkpoint of video-diffusion-pytorch {__version__}, "
        f"{size / 1e3:.1f} kB"
    )
    count = sum(
        p.numel() for p in Unet3D(8, dim_mults=(1, 2), channels=1, attn_heads=1).parameters()
    )
    assert lines == {
        "step": "1200",
        "network": f"Unet3D, {count / 1e6:.3g} million parameters, dim 8, dim_mults (1, 2), "
        "1 channel",
        "conditions": "none",
        "clips": "4 frames of 16 x 24 pixels, 1 channel, values from 0 to 1",
        "diffusion": "20 time steps, schedule cosine, objective pred_noise, loss l1",
        "data": "100 clips, 2.5 epochs done (250 clips seen), seed 5",
        "averages": "0.995, 0.9999",
        "optimizer": "learning rate 0.0002, betas (0.9, 0.999), weight decay 0.05",
        "losses": "training 0.1235",
        "processes": "2",
    }


def test_conditions_ranges_and_objective_in_words(describe):
    unet = Unet3D(
        dim=8, channels=1, attn_heads=1, cond_dim=7, num_classes=3, frame_cond_dim=2,
        cond_channels=4,
    )  # fmt: skip
    state = state_of(
        unet, value_range=(-5.0, 310.25), given_frames=2, objective="pred_v", loss_type="l2",
        beta_schedule="continuous_cosine",
    )  # fmt: skip
    state["config"]["class_names"] = ("cat", "cow", "dog")
    lines = describe(state)[1]
    assert lines["conditions"] == (
        "captions or vectors of 7 numbers, 3 classes, vectors of 2 numbers for each frame, fields "
        "of 4 channels"
    )
    assert lines["classes"] == "cat, cow, dog"
    assert lines["clips"].endswith("the first 2 given, values from -5 to 310.25")
    assert lines["diffusion"] == (
        "20 time steps, schedule continuous_cosine, objective pred_v, loss l2"
    )


def test_ranges_of_many_channels_are_cut_short(describe):
    unet = Unet3D(dim=8, dim_mults=(1,), channels=6, attn_heads=1)
    low, high = [float(i) for i in range(6)], [float(i) for i in range(1, 7)]
    lines = describe(state_of(unet, value_range=(low, high)))[1]
    assert lines["clips"].endswith("values from (0, 1, 2, 3, ...) to (1, 2, 3, 4, ...)")
    betas = torch.linspace(1e-4, 0.02, 20).tolist()
    lines = describe(state_of(auto_normalize=False, beta_schedule=betas))[1]
    assert lines["clips"].endswith("values as they are")
    assert "schedule of given betas" in lines["diffusion"]


class Network(nn.Module):
    """None of ours."""

    channels = 1

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(100, 100)

    def forward(self, x, time, **_):
        return x


def test_another_network(describe):
    lines = describe(state_of(Network()))[1]
    assert lines["network"] == "not a Unet3D, 0.0101 million parameters"
    assert "conditions" not in lines


@pytest.mark.parametrize("version", ["0.7.0", "0.6.3"])
def test_files_of_the_reference(version):
    path = GOLDEN / f"reference_results_{version}" / "model-2.pt"
    title, *lines = describe_checkpoint(path)
    number = {"0.7.0": "0.7.0", "0.6.3": "0.6.x"}[version]
    assert title.startswith(f"{path}: checkpoint of the reference, version {number}, 6")
    state = torch.load(path, weights_only=True)
    network = Unet3D.from_state_dict(state["model"])
    count = sum(p.numel() for p in network.parameters())
    assert lines == [
        f"  step        {state['step']}",
        f"  network     Unet3D, {count / 1e6:.3g} million parameters, dim 8, dim_mults (1, 2), "
        "3 channels",
        "  conditions  none",
        "  diffusion   6 time steps, schedule cosine, objective pred_noise",
        "  optimizer   not in the file: resuming starts a new one",
    ]
    assert describe_checkpoint(path.parent)[0] == title


def test_a_file_before_averages_and_processes_were_recorded(describe):
    state = state_of()
    for name in ("emas", "ema_decays", "losses", "scheduler"):
        del state[name]
    state["random_states"] = state["random_states"][0]
    lines = describe(state)[1]
    assert lines["processes"] == "1"
    assert not {"averages", "losses"} & lines.keys()


def test_the_newest_of_a_folder(describe, tmp_path):
    for number in (9, 10):
        describe({**state_of(), "step": number}, tmp_path / f"model-{number}.pt")
    title, step, *_ = describe_checkpoint(tmp_path)
    assert title.startswith(f"{tmp_path / 'model-10.pt'}: ")
    assert step.split() == ["step", "10"]


def without_tensors(value):
    if isinstance(value, dict):
        return {k: without_tensors(v) for k, v in value.items() if not torch.is_tensor(v)}
    return value


def test_a_folder_that_is_a_checkpoint(tmp_path):
    folder = tmp_path / "model-3.sharded"
    folder.mkdir()
    state = state_of(num_processes=4)
    torch.save(without_tensors(state), folder / "run.pt")
    (folder / "shard").write_bytes(bytes(3_000_000))
    title, *lines = describe_checkpoint(folder)
    assert title.endswith(", 3.0 MB")
    assert lines[-1].split() == ["processes", "4"]
    assert "million parameters, dim 8" in lines[1]
    # the network of another kind is in the shards only
    state["config"]["unet"] = None
    torch.save(without_tensors(state), folder / "run.pt")
    assert describe_checkpoint(str(tmp_path))[2].split(maxsplit=1) == ["network", "not a Unet3D"]


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint at .*model-1\.pt, found n"):
        describe_checkpoint(tmp_path / "model-1.pt")
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint model-N\.pt or model-N"):
        describe_checkpoint(tmp_path)
    (tmp_path / "model-1.pt").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"expected a checkpoint in .*model-1\.pt, got a file"):
        describe_checkpoint(tmp_path / "model-1.pt")


def test_options_beyond_the_reference(describe):
    unet = Unet3D(
        dim=8, dim_mults=(1, 2), attn_heads=1, cond_dim=4, num_text_tokens=3, full_attn_levels=[1]
    )
    _, lines = describe(state_of(unet))
    assert lines["network"].endswith(", 3 channels, num_text_tokens 3, full_attn_levels (1,)")
