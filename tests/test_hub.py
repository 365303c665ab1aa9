"""A model that is shared as a folder comes back as it was, and nothing else passes for one."""

import json
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, hub
from video_diffusion_pytorch.pretrained import load_diffusion

UNETS = [
    {},
    {"cond_dim": 5, "num_classes": 4, "frame_cond_dim": 6, "cond_channels": 4},
    {"resnet_groups": 4, "use_sparse_linear_attn": False, "init_dim": 16, "init_kernel_size": 3},
]
DIFFUSIONS = [
    {},
    {
        "image_size": (8, 16),
        "objective": "pred_v",
        "value_range": ((0.1, 0.2, 0.3), 7),
        "min_snr_gamma": 5,
        "sampling_timesteps": 2,
    },
    {"beta_schedule": "continuous_cosine", "auto_normalize": False},
    {"beta_schedule": torch.linspace(1e-3, 1 / 3, 3).tolist(), "timesteps": 3},
]


def tiny_unet(seed=0, **config):
    torch.manual_seed(seed)
    config = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8} | config
    return Unet3D(**config).eval()


def tiny_diffusion(unet=None, **config):
    config = {"image_size": 8, "num_frames": 2, "timesteps": 4} | config
    return GaussianDiffusion(tiny_unet() if unet is None else unet, **config).eval()


def samples(diffusion, **conditions):
    torch.manual_seed(1)
    return diffusion.sample(batch_size=2, progress=False, **conditions)


def exactly(message):
    return f"^{re.escape(message)}$"


def assert_same_model(again, model):
    assert type(again) is type(model)
    assert again.config == model.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(theirs) == list(ours)
    for name, value in ours.items():
        assert torch.equal(theirs[name], value), name
        assert theirs[name].dtype == value.dtype, name
        assert theirs[name].stride() == value.stride(), name


@pytest.fixture
def shared(tmp_path):
    """A folder with a diffusion."""
    tiny_diffusion().save_pretrained(tmp_path / "shared")
    return tmp_path / "shared"


# There and back


@pytest.mark.parametrize("config", UNETS)
def test_a_network_is_restored(tmp_path, config):
    unet = tiny_unet(**config)
    unet.save_pretrained(tmp_path)
    again = Unet3D.from_pretrained(tmp_path)
    assert_same_model(again, unet)
    assert not again.training
    # kernels keep the memory format of the videos, although the file has another
    weight = again.init_conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not weight.is_contiguous()
    x, time = torch.randn(2, 3, 2, 8, 8), torch.tensor([3, 800])
    with torch.no_grad():
        outputs = [net(x, time, null_cond_prob=1.0) for net in (again, unet)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("config", DIFFUSIONS)
def test_a_diffusion_is_restored(tmp_path, config):
    diffusion = tiny_diffusion(**config)
    diffusion.save_pretrained(str(tmp_path))
    again = GaussianDiffusion.from_pretrained(str(tmp_path))
    assert_same_model(again, diffusion)
    assert again.denoise_fn.config == diffusion.denoise_fn.config
    assert not again.denoise_fn.training
    assert torch.equal(samples(again), samples(diffusion))


def test_a_checkpoint_becomes_a_folder(tmp_path):
    diffusion = tiny_diffusion(value_range=(-3, 40))
    config = {"unet": diffusion.denoise_fn.config, "diffusion": diffusion.config}
    weights = diffusion.state_dict()
    torch.save({"step": 5, "model": weights, "ema": weights, "config": config}, tmp_path / "c.pt")
    load_diffusion(tmp_path / "c.pt").save_pretrained(tmp_path / "shared")
    again = GaussianDiffusion.from_pretrained(tmp_path / "shared")
    assert torch.equal(samples(again), samples(diffusion))
    assert samples(again).max() > 1


def test_half_precision_stays_half(tmp_path):
    unet = tiny_unet().to(torch.bfloat16)
    unet.save_pretrained(tmp_path)
    again = Unet3D.from_pretrained(tmp_path)
    assert_same_model(again, unet)
    assert again.init_conv.weight.dtype == torch.bfloat16


def test_wrappers_of_a_network_are_not_saved(tmp_path):
    diffusion = tiny_diffusion()
    expected = samples(diffusion)
    diffusion.denoise_fn = nn.DataParallel(diffusion.denoise_fn)
    diffusion.save_pretrained(tmp_path)
    assert torch.equal(samples(GaussianDiffusion.from_pretrained(tmp_path)), expected)


def test_the_network_of_a_diffusion_is_loaded_alone(shared):
    unet = Unet3D.from_pretrained(shared)
    assert_same_model(unet, tiny_diffusion().denoise_fn)


def test_a_subclass_is_restored_as_itself(tmp_path):
    class Mine(Unet3D):
        pass

    torch.manual_seed(0)
    unet = Mine(8, dim_mults=(1,), attn_heads=1)
    unet.save_pretrained(tmp_path)
    assert_same_model(Mine.from_pretrained(tmp_path), unet)
    # and a diffusion is still built around the network of the library
    tiny_diffusion().save_pretrained(tmp_path / "other")
    assert type(GaussianDiffusion.from_pretrained(tmp_path / "other").denoise_fn) is Unet3D


def test_saving_leaves_the_model_alone(tmp_path):
    unet = tiny_unet().train()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    unet.save_pretrained(tmp_path)
    assert unet.training
    assert unet.init_conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    for name, value in unet.state_dict().items():
        assert torch.equal(value, before[name])


# The files


def test_what_a_folder_holds(shared):
    names = {"config.json", "model.safetensors", "README.md"}
    assert {path.name for path in shared.iterdir()} == names
    config = json.loads((shared / "config.json").read_text())
    assert config.keys() == {"library", "version", "diffusion", "unet", "clips"}
    assert config["library"] == "video-diffusion-pytorch"
    assert set(load_file(shared / "model.safetensors")) == set(tiny_diffusion().state_dict())
    card = huggingface_hub.ModelCard.load(shared / "README.md")
    assert card.data.library_name == "video-diffusion-pytorch"
    assert "diffusion" in card.data.tags
    assert 'GaussianDiffusion.from_pretrained("shared")' in card.text


def test_a_second_save_replaces_the_model_and_not_the_card(shared):
    (shared / "README.md").write_text("mine")
    other = tiny_diffusion(tiny_unet(seed=1), timesteps=7)
    other.save_pretrained(shared)
    assert_same_model(GaussianDiffusion.from_pretrained(shared), other)
    assert (shared / "README.md").read_text() == "mine"
    assert len(list(shared.iterdir())) == 3


def test_a_failed_save_leaves_the_old_files(shared, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        tiny_diffusion(tiny_unet(seed=1)).save_pretrained(shared)
    monkeypatch.undo()
    assert_same_model(GaussianDiffusion.from_pretrained(shared), tiny_diffusion())
    assert len(list(shared.iterdir())) == 3


# What can't be saved


def test_a_network_of_another_class(tmp_path):
    class Mine(Unet3D):
        pass

    for network, name in (
        (nn.Conv3d(3, 3, 1), "Conv3d"),
        (Mine(8, dim_mults=(1,), attn_heads=1), "Mine"),
    ):
        message = (
            "save_pretrained: the network of a GaussianDiffusion must be a Unet3D, got "
            f"{name}, which from_pretrained could not build; save state_dict() with torch.save, "
            "and build the network yourself before you load it"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            tiny_diffusion(network).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_json_lacks(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        tiny_diffusion(min_snr_gamma=float("inf")).save_pretrained(tmp_path)


def test_tensors_without_data(tmp_path):
    unet = tiny_unet()
    unet.init_conv.to("meta")
    message = (
        "save_pretrained: init_conv.weight must be a whole tensor with data, got a meta tensor; "
        "save a checkpoint of the training, load it with load_diffusion, and save that"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        unet.save_pretrained(tmp_path)


@pytest.mark.parametrize("inside", ["", "folder"])
def test_a_folder_that_is_a_file(tmp_path, inside):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / inside
    with pytest.raises((FileExistsError, NotADirectoryError), match="file"):
        tiny_unet().save_pretrained(folder)


# What can't be loaded


def test_a_folder_without_a_model(tmp_path, shared):
    ending = "; write it with save_pretrained, or load a training file with load_diffusion"
    cases = [(tmp_path, "config.json"), (shared, "model.safetensors")]
    (shared / "model.safetensors").unlink()
    (shared / "pytorch_model.bin").write_bytes(pickle.dumps(1))
    for folder, missing in cases:
        message = (
            f"from_pretrained: {folder} must hold config.json and model.safetensors, got a folder "
            f"without a regular file {missing}{ending}"
        )
        with pytest.raises(FileNotFoundError, match=exactly(message)):
            GaussianDiffusion.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", '{"unet": {', "\xff\xfe", "[" * 100_000])
def test_a_config_that_is_no_json(shared, text):
    (shared / "config.json").write_text(text, encoding="latin-1")
    message = f"from_pretrained: {shared / 'config.json'} must be the JSON file of a model, got"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*; save or download the model"):
        GaussianDiffusion.from_pretrained(shared)


@pytest.mark.parametrize(
    "content", [{"model_type": "bert", "vocab_size": 3}, {"unet": None}, {}, [1]]
)
def test_a_config_of_something_else(shared, content):
    (shared / "config.json").write_text(json.dumps(content))
    for model, parts in ((Unet3D, "unet"), (GaussianDiffusion, "diffusion and unet")):
        message = (
            f"from_pretrained: {shared / 'config.json'} must hold the settings of a "
            f"{model.__name__} under {parts}, got {content}; load a network without diffusion with "
            "Unet3D.from_pretrained"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            model.from_pretrained(shared)


def test_a_config_of_a_mebibyte(shared):
    (shared / "config.json").write_text(" " * 2**20 + "{}")
    with pytest.raises(
        ValueError, match=r"config\.json must be .*\(more than 1048576 bytes\); save"
    ):
        GaussianDiffusion.from_pretrained(shared)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file(shared, name):
    (shared / name).unlink()
    os.mkfifo(shared / name)
    with pytest.raises(FileNotFoundError, match=f"got a folder without a regular file {name};"):
        GaussianDiffusion.from_pretrained(shared)


def test_a_network_is_no_diffusion(tmp_path):
    tiny_unet().save_pretrained(tmp_path)
    message = (
        "of a GaussianDiffusion under diffusion and unet, got .*; load .* Unet3D.from_pretrained"
    )
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "got"),
    [
        ("unet", {"dim": "eight"}, "Unet3D: dim must be a whole number"),
        ("unet", {"dim": 0}, "Unet3D: dim must be a whole number of at least 1"),
        ("unet", {"attention": "new"}, "unexpected keyword argument 'attention'"),
        ("diffusion", {"objective": "pred_flow"}, "GaussianDiffusion: objective must be one of"),
        ("diffusion", {"image_size": None}, "GaussianDiffusion: image_size must be"),
    ],
)
def test_settings_that_build_nothing(shared, part, change, got):
    file = shared / "config.json"
    config = json.loads(file.read_text())
    config[part] |= change
    config["version"] = "99.1"
    file.write_text(json.dumps(config))
    message = (
        f"^from_pretrained: the settings in {re.escape(str(file))} and the arguments must build a "
        f"GaussianDiffusion, got .*{re.escape(got)}.*; leave the arguments out, or use version "
        r"99\.1, which wrote the file \(this is "
    )
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion.from_pretrained(shared)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, "half", "pickle"])
def test_damaged_tensors(shared, content):
    file = shared / "model.safetensors"
    if content == "half":
        content = file.read_bytes()[: file.stat().st_size // 2]
    elif content == "pickle":
        torch.save(tiny_diffusion().state_dict(), file)
        content = file.read_bytes()
    file.write_bytes(content)
    message = f"from_pretrained: {file} must be a safetensors file, got a damaged or another file ("
    for model in (Unet3D, GaussianDiffusion):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}.*; save or download the"):
            model.from_pretrained(shared)


def test_tensors_of_another_model(shared):
    file = shared / "model.safetensors"
    message = (
        f"from_pretrained: the tensors in {file} must fit the settings and the arguments, got "
        "Error(s) in loading state_dict for GaussianDiffusion: "
    )
    ending = "; leave out the arguments that change the model"
    with pytest.raises(
        ValueError, match=f"^{re.escape(message)}size mismatch for betas.*{ending}$"
    ):
        GaussianDiffusion.from_pretrained(shared, timesteps=9)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}Missing.*{ending}$"):
        GaussianDiffusion.from_pretrained(shared)


# Overrides


def test_overrides_replace_saved_settings(shared):
    again = GaussianDiffusion.from_pretrained(shared, sampling_timesteps=2, use_dynamic_thres=True)
    assert (again.sampling_timesteps, again.use_dynamic_thres) == (2, True)
    assert Unet3D.from_pretrained(shared, gradient_checkpointing=True).gradient_checkpointing


def test_overrides_that_contradict_the_weights(shared):
    with pytest.raises(ValueError, match="the state dict must have the model's objective"):
        GaussianDiffusion.from_pretrained(shared, objective="pred_v")


def test_a_misspelt_override(shared):
    with pytest.raises(TypeError, match="unexpected keyword argument 'gradient_chekpointing'"):
        Unet3D.from_pretrained(shared, gradient_chekpointing=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample_steps'"):
        GaussianDiffusion.from_pretrained(shared, sample_steps=3)


# The Hub


@pytest.fixture
def remote(shared, monkeypatch):
    """A repository that is the folder; notes what is asked of it."""
    calls = []

    def download(repo, name, **options):
        calls.append((repo, name, options))
        return str(shared / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    return calls


def test_a_repository_is_downloaded(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = GaussianDiffusion.from_pretrained("user/model", revision="v1", token="secret")
    assert_same_model(again, tiny_diffusion())
    assert [call[:2] for call in remote] == [
        ("user/model", "config.json"),
        ("user/model", "model.safetensors"),
    ]
    assert (
        remote[0][2]
        == remote[1][2]
        == {
            "revision": "v1",
            "cache_dir": None,
            "token": "secret",
            "force_download": False,
            "local_files_only": False,
        }
    )


def test_a_cached_repository_needs_no_network(shared, tmp_path):
    cache = tmp_path / "cache" / "models--user--model"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    shared.rename(snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    again = Unet3D.from_pretrained(
        "user/model", cache_dir=tmp_path / "cache", local_files_only=True
    )
    assert_same_model(again, tiny_unet())


@pytest.mark.parametrize("name", ["./no/such/folder", "user/model"])
def test_neither_a_folder_nor_a_repository(tmp_path, name):
    message = (
        f"from_pretrained: {name} must be a folder, or a repository of the Hugging Face Hub with "
        "config.json, got "
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}.*; check name, network"):
        Unet3D.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


class Api:
    """Stands for the Hub: holds what is uploaded."""

    has_card = False

    def __init__(self, token=None):
        self.calls = [("token", token)]
        Api.last = self

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def file_exists(self, repo_id, name, *, revision=None):
        self.calls.append(("file_exists", repo_id, name, revision))
        return self.has_card

    def upload_folder(self, *, folder_path, **options):
        self.calls.append(("upload_folder", options))
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url="https://hub/me/model/commit/1")


@pytest.mark.parametrize("has_card", [False, True])
def test_a_model_is_pushed_in_one_commit(tmp_path, monkeypatch, has_card):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "has_card", has_card)
    unet = tiny_unet()
    url = unet.push_to_hub("model", private=True, token="secret", branch="dev", create_pr=True)
    assert url == "https://hub/me/model/commit/1"
    assert Api.last.calls == [
        ("token", "secret"),
        ("create_repo", "model", {"exist_ok": True, "private": True}),
        ("file_exists", "me/model", "README.md", "dev"),
        (
            "upload_folder",
            {
                "repo_id": "me/model",
                "commit_message": "Upload the model",
                "revision": "dev",
                "create_pr": True,
                "ignore_patterns": ["README.md"] if has_card else None,
            },
        ),
    ]
    assert 'Unet3D.from_pretrained("me/model")' in Api.last.files["README.md"].decode()
    for name, content in Api.last.files.items():
        (tmp_path / name).write_bytes(content)
    assert_same_model(Unet3D.from_pretrained(tmp_path), unet)


def test_what_cannot_be_saved_makes_no_repository(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(ValueError, match="must be a Unet3D"):
        tiny_diffusion(nn.Conv3d(3, 3, 1)).push_to_hub("model")
    assert [call[0] for call in Api.last.calls] == ["token"]


@pytest.mark.parametrize(
    ("part", "change", "got"),
    [
        ("unet", {"dim": 10**6}, r"a network of \d+ parameters or more for \d+ bytes of weights"),
        ("unet", {"blocks_per_level": 10**9}, "a network of"),
        ("unet", {"dim": 10**30}, "[^\n]*Overflow[^\n]*"),
        ("diffusion", {"timesteps": 10**11}, r"a diffusion of 100000000000 steps for \d+ bytes"),
    ],
)
def test_settings_of_a_model_much_larger_than_the_weights(shared, part, change, got):
    config = json.loads((shared / "config.json").read_text())
    config[part] |= change
    (shared / "config.json").write_text(json.dumps(config))
    message = f"^from_pretrained: the settings in [^\n]* must build a GaussianDiffusion, got {got}"
    with pytest.raises(ValueError, match=message) as caught:
        GaussianDiffusion.from_pretrained(shared)
    assert "\n" not in str(caught.value)
