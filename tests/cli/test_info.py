"""Descriptions of checkpoints."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, __version__
from video_diffusion_pytorch.cli.info import describe_checkpoint
from video_diffusion_pytorch.clip_info import ClipInfo
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
        return title, dict(re.fullmatch(r"  (\w+(?: \w+)*) +(.*)", line).groups() for line in lines)

    return run


def test_a_checkpoint_is_described(describe, tmp_path):
    title, lines = describe(state_of())
    size = (tmp_path / "model-3.pt").stat().st_size
    assert title == (
        f"{tmp_path}/model-3.pt: checkpoint of video-diffusion-pytorch {__version__}, "
        f"{size / 1e6:.1f} MB"
    )
    unet = Unet3D(8, dim_mults=(1, 2), channels=1, attn_heads=1)
    count = sum(parameter.numel() for parameter in unet.parameters())
    assert lines == {
        "step": "1200",
        "network": f"Unet3D, {count:,} parameters, dim 8, dim_mults (1, 2), channels 1, "
        "attn_heads 1",
        "diffusion": "image_size (16, 24), num_frames 4, channels 1, timesteps 20",
        "progress": "100 clips, 2.5 epochs done (250 clips seen), seed 5",
        "averages": "0.995, 0.9999",
        "optimizer": "lr 0.0002, betas (0.9, 0.999), weight_decay 0.05",
        "losses": "training 0.1235",
        "processes": "2",
    }


def test_settings_that_differ_from_the_defaults(describe):
    unet = Unet3D(dim=8, channels=1, attn_heads=1, cond_dim=7, num_classes=3, full_attn_levels=[1])
    state = state_of(
        unet, value_range=(-5.0, 310.25), objective="pred_v", beta_schedule=[1 / 7] * 20
    )
    state["config"]["class_names"] = ("cat", "cow", "dog")
    lines = describe(state)[1]
    # versions up to 0.8 kept these alone
    assert lines["classes"] == "cat, cow, dog"
    for setting in ("cond_dim 7", "num_classes 3", "full_attn_levels (1,)"):
        assert f", {setting}" in lines["network"]
    assert ", objective 'pred_v', " in lines["diffusion"]
    assert ", value_range (-5.0, 310.25)" in lines["diffusion"]
    # long ones are cut
    assert re.search(r"beta_schedule \(0\.142[0-9., ]+\.\.\.", lines["diffusion"])


INFO = ClipInfo(
    class_names=("cat", "dog"),
    cond_ranges={"EF (%)": (30.0, 82.5)},
    text_encoder="t5-small",
    fps=25.0,
    settings={"fit": "contain", "fps": None},
)
IN_WORDS = {
    "classes": "cat, dog",
    "cond": "EF (%) 30 to 82.5",
    "text encoder": "t5-small",
    "frames per second": "25",
    "data": "fit contain",
}


def test_the_training_clips_are_described(describe):
    state = state_of()
    state["config"]["clips"] = INFO.to_config()
    lines = describe(state)[1]
    assert {name: lines[name] for name in IN_WORDS} == IN_WORDS


def test_a_shared_model(tmp_path):
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=1)
    model = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=20)
    model.clip_info = INFO
    model.save_pretrained(tmp_path / "whole")
    title, *lines = describe_checkpoint(tmp_path / "whole")
    start = f"{tmp_path}/whole: shared model of video-diffusion-pytorch {__version__}, "
    assert re.fullmatch(rf"{re.escape(start)}\d\.\d MB", title)
    found = dict(re.fullmatch(r"  (.{20})(.*)", line).groups() for line in lines)
    found = {name.strip(): text for name, text in found.items()}
    assert found.pop("network").endswith(", dim 8, dim_mults (1, 2), channels 1, attn_heads 1")
    assert found == {
        "diffusion": "image_size 16, num_frames 4, channels 1, timesteps 20",
        **IN_WORDS,
    }
    unet.save_pretrained(tmp_path / "part")
    title, network = describe_checkpoint(tmp_path / "part")
    assert ": shared network without its diffusion of video-diffusion-pytorch" in title
    assert network.startswith("  network ")


def test_a_shared_model_on_the_hub(tmp_path, monkeypatch):
    Unet3D(dim=8, dim_mults=(1, 2), attn_heads=1).save_pretrained(tmp_path)
    asked = []

    def download(repo, name, **options):
        asked.append((repo, name))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert describe_checkpoint("user/films")[0].endswith(", on the Hugging Face Hub")
    assert asked == [("user/films", "config.json")]


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
    assert lines["network"] == "not a Unet3D, 10,100 parameters"


@pytest.mark.parametrize("version", ["0.7.0", "0.6.3"])
def test_files_of_the_reference(version):
    path = GOLDEN / f"reference_results_{version}" / "model-2.pt"
    title, *lines = describe_checkpoint(path)
    number, groups = {"0.7.0": ("0.7.0", ""), "0.6.3": ("0.6.x", ", resnet_groups 8")}[version]
    assert title.startswith(f"{path}: checkpoint of the reference, version {number}, 0.6 MB")
    state = torch.load(path, weights_only=True)
    network = Unet3D.from_state_dict(state["model"])
    count = sum(p.numel() for p in network.parameters())
    assert lines == [
        f"  step                {state['step']}",
        f"  network             Unet3D, {count:,} parameters, dim 8, out_dim 3, dim_mults (1, 2), "
        f"attn_heads 2, attn_dim_head 16, init_dim 8{groups}",
        "  diffusion           timesteps 6",
        "  optimizer           not in the file: resuming starts a new one",
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
    assert " parameters, dim 8" in lines[1]
    # the network of another kind is in the shards only
    state["config"]["unet"] = None
    torch.save(without_tensors(state), folder / "run.pt")
    assert describe_checkpoint(str(tmp_path))[2].split(maxsplit=1) == ["network", "not a Unet3D"]


def test_missing_and_damaged_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint at .*model-1\.pt, found n"):
        describe_checkpoint(tmp_path / "model-1.pt")
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint model-N\.pt or model-N"):
        describe_checkpoint(tmp_path)
    (tmp_path / "model-1.pt").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"expected a checkpoint in .*model-1\.pt, got one that"):
        describe_checkpoint(tmp_path / "model-1.pt")
