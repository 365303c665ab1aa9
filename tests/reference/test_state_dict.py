"""Checkpoints of the reference's versions are read, and written back."""

import copy
import re
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import (
    GaussianDiffusion,
    Unet3D,
    load_diffusion,
    to_reference_state_dict,
)

GOLDEN = Path(__file__).parents[1] / "golden"
UNETS = sorted(GOLDEN.glob("unet_*.pt"))
VERSIONS = ["0.7.0", "0.6.3"]


def groups_of(version):
    return 8 if version.startswith("0.6") else None


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(params=UNETS, ids=lambda path: path.stem)
def recorded(request):
    record = load(request.param)
    return record, {**record["config"], "resnet_groups": groups_of(record["reference_version"])}


@pytest.fixture(params=VERSIONS)
def training_file(request):
    """A file of the reference's Trainer, what its average gives, and how to build the same."""
    record = load(GOLDEN / f"trainer_{request.param}.pt")
    file = load(GOLDEN / f"reference_results_{request.param}" / "model-2.pt")

    def build():
        unet = Unet3D(**record["unet"], resnet_groups=groups_of(request.param))
        return GaussianDiffusion(unet, **record["diffusion"])

    return file, record, build


def tiny_unet(**config):
    return Unet3D(**{"dim": 8, "dim_mults": (1, 2), "attn_heads": 2} | config)


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


# Reading


def test_a_network_takes_all_of_the_references_tensors(recorded):
    record, config = recorded
    given = dict(record["state_dict"])
    unet = Unet3D(**config)
    result = unet.load_state_dict(given, strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    assert given.keys() == record["state_dict"].keys()


def test_a_diffusion_takes_a_training_file(training_file):
    file, record, build = training_file
    diffusion = build()
    for weights in ("model", "ema"):
        result = diffusion.load_state_dict(file[weights], strict=True)
        assert result.missing_keys == result.unexpected_keys == []
    with torch.no_grad():
        output = diffusion.denoise_fn(record["x"], record["t"])
    expected = record["ema_output"]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    torch.manual_seed(5)
    videos = diffusion.sample(batch_size=2, progress=False)
    torch.testing.assert_close(videos, record["ema_sample_seed_5_batch_2"], rtol=0, atol=1e-4)


def test_a_file_without_rotary_frequencies_is_complete(recorded):
    record, config = recorded
    unet = Unet3D(**config)
    unet.load_state_dict(
        {k: v for k, v in record["state_dict"].items() if not k.endswith("rotary_emb.freqs")}
    )
    frequencies = next(v for k, v in record["state_dict"].items() if k.endswith("freqs"))
    torch.testing.assert_close(unet.rotary_emb.freqs.detach(), frequencies)


def test_our_own_names_are_read_too():
    first, second = tiny_unet(), tiny_unet()
    second.load_state_dict(first.state_dict())
    assert_same_tensors(second.state_dict(), first.state_dict())


WRAPPED = [
    ("module.", ""),
    ("_orig_mod.", ""),
    ("", "module."),
    ("", "_orig_mod."),
    ("module.", "module."),
    ("_orig_mod.module.", "module._orig_mod."),
]


@pytest.mark.parametrize(("outside", "inside"), WRAPPED)
def test_names_of_wrapped_modules_are_read(training_file, outside, inside):
    """As DistributedDataParallel, DataParallel and torch.compile write them."""
    file, _, build = training_file

    def wrapped(name):
        return outside + re.sub("^denoise_fn.", f"denoise_fn.{inside}", name)

    expected, again = build(), build()
    expected.load_state_dict(file["ema"])
    for tensors in (file["ema"], expected.state_dict()):
        again.load_state_dict({wrapped(name): value for name, value in tensors.items()})
        assert_same_tensors(again.state_dict(), expected.state_dict())

    network = {
        outside + inside + name: value for name, value in expected.denoise_fn.state_dict().items()
    }
    again = build().denoise_fn
    again.load_state_dict(network)
    assert_same_tensors(again.state_dict(), expected.denoise_fn.state_dict())


def test_a_training_file_of_a_wrapped_model_is_loaded(training_file, tmp_path):
    file, record, build = training_file
    wrapped = {
        part: {f"module.{name}": value for name, value in file[part].items()}
        for part in ("model", "ema")
    }
    torch.save({**file, **wrapped}, tmp_path / "model-2.pt")
    size = {name: record["diffusion"][name] for name in ("image_size", "num_frames")}
    again, expected = load_diffusion(tmp_path / "model-2.pt", **size), build()
    expected.load_state_dict(file["ema"])
    assert_same_tensors(again.state_dict(), expected.state_dict())


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_a_wrapped_module_takes_its_own_names_and_the_references(training_file, wrap):
    file, _, build = training_file
    expected, again, other = (build() for _ in range(3))
    expected.load_state_dict(file["ema"])
    wrap(again).load_state_dict(wrap(expected).state_dict())
    assert_same_tensors(again.state_dict(), expected.state_dict())

    other.denoise_fn = wrap(other.denoise_fn)
    for tensors in (file["ema"], expected.state_dict()):
        other.load_state_dict(tensors)
        own = other.state_dict()
        other.load_state_dict(own)
        again = build()
        again.load_state_dict(own)
        assert_same_tensors(again.state_dict(), expected.state_dict())


def test_a_wrapped_tensor_does_not_replace_another():
    tensors = tiny_unet().state_dict()
    tensors["module.init_conv.weight"] = tensors["init_conv.weight"] + 1
    with pytest.raises(RuntimeError, match=re.escape('Unexpected key(s) in state_dict: "module')):
        tiny_unet().load_state_dict(tensors)


def test_a_module_of_the_users_own_may_be_named_module():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(1, 1)

    diffusion = GaussianDiffusion(Network(), image_size=8, num_frames=2, timesteps=3)
    tensors = {name: value.clone() for name, value in diffusion.state_dict().items()}
    tensors["denoise_fn.module.bias"] += 1
    diffusion.load_state_dict({f"module.{name}": value for name, value in tensors.items()})
    assert_same_tensors(diffusion.state_dict(), tensors)


def test_missing_and_unexpected_tensors_are_named():
    unet = tiny_unet()
    theirs = to_reference_state_dict(unet.state_dict())
    missing = dict(theirs)
    del missing["downs.0.0.block1.proj.weight"]
    with pytest.raises(RuntimeError, match=r"Missing .*\"downs.0.block1.block1.proj.weight\""):
        unet.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Unexpected .*\"stranger\""):
        unet.load_state_dict({**theirs, "stranger": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Missing"):
        unet.load_state_dict({})


@pytest.mark.parametrize("wrapped", [False, True])
def test_another_normalisation_is_refused(wrapped):
    grouped, plain = tiny_unet(resnet_groups=8), tiny_unet()
    if wrapped:
        grouped, plain = (
            GaussianDiffusion(unet, image_size=8, num_frames=2, timesteps=2)
            for unet in (grouped, plain)
        )
    rms, group = "RMSNorm (resnet_groups=None)", "GroupNorm (resnet_groups=8 in versions 0.6.x)"
    text = (
        "Unet3D: the state dict must be of a network with {}, got {}; build the network with the "
    )
    message = text.format(rms, group) + "same keywords"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plain.load_state_dict(to_reference_state_dict(grouped.state_dict()))
    message = text.format(group, rms) + "same keywords"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        grouped.load_state_dict(to_reference_state_dict(plain.state_dict()))


# Writing


def test_a_network_gives_the_references_tensors_back(recorded):
    record, config = recorded
    unet = Unet3D(**config)
    unet.load_state_dict(record["state_dict"])
    assert_same_tensors(to_reference_state_dict(unet.state_dict()), record["state_dict"])


def test_a_diffusion_gives_the_references_tensors_back(training_file):
    file, _, build = training_file
    diffusion = build()
    diffusion.load_state_dict(file["model"])
    assert_same_tensors(to_reference_state_dict(diffusion.state_dict()), file["model"])


def test_a_training_file_goes_there_and_back(training_file):
    file, _, build = training_file
    model, average = build(), build()
    model.load_state_dict(file["model"])
    average.load_state_dict(file["ema"])
    ours = {
        "step": file["step"],
        "model": model.state_dict(),
        "ema": average.state_dict(),
        "optimizer": {"what": "the reference does not read"},
    }
    theirs = to_reference_state_dict(ours)
    assert theirs.keys() == file.keys()
    assert theirs["step"] == file["step"]
    assert theirs["scaler"] == {}
    for weights in ("model", "ema"):
        assert_same_tensors(theirs[weights], file[weights])
    # what has their names already stays as it is
    scaled = to_reference_state_dict({**ours, "scaler": {"scale": 8.0}})
    assert scaled["scaler"] == {"scale": 8.0}


# A network from its tensors


def settled(config):
    """The keywords of a network as far as its tensors tell them."""
    unet = Unet3D(**config)
    defaults = {"out_dim": unet.channels, "init_dim": config["dim"]}
    ours = {**unet.config, "dim_mults": tuple(unet.config["dim_mults"])}
    return {k: defaults.get(k) if v is None else v for k, v in ours.items()}


def test_the_references_networks_are_rebuilt_from_their_tensors(recorded):
    record, config = recorded
    unet = Unet3D.from_state_dict(record["state_dict"])
    assert unet.config == settled(config)
    with torch.no_grad():
        output = unet(record["x"], record["time"], cond=record["cond"])
    expected = record["output"]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"dim_mults": (1,)},
        {"dim_mults": (2, 1, 3)},
        {"dim_mults": tuple([1] * 11)},
        {"cond_dim": 5, "channels": 4, "out_dim": 2},
        {"init_dim": 12, "init_kernel_size": 3},
        {"attn_heads": 3, "attn_dim_head": 48},
        {"use_sparse_linear_attn": False},
        {"resnet_groups": 8},
        {"num_classes": 4},
        {"frame_cond_dim": 6, "cond_dim": 5},
        {"cond_channels": 2, "channels": 1},
    ],
)
def test_our_networks_are_rebuilt_from_their_tensors(config):
    config = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8} | config
    unet = Unet3D(**config)
    again = Unet3D.from_state_dict(unet.state_dict())
    assert again.config == settled(config)
    assert_same_tensors(again.state_dict(), unet.state_dict())


def test_bert_networks_are_rebuilt_with_their_width():
    unet = tiny_unet(use_bert_text_cond=True)
    assert Unet3D.from_state_dict(unet.state_dict()).null_cond_emb.shape == (1, 768)


def test_a_network_is_rebuilt_from_a_training_file_by_its_average(training_file):
    file, record, _ = training_file
    unet = Unet3D.from_state_dict(file)
    with torch.no_grad():
        output = unet(record["x"], record["t"])
    expected = record["ema_output"]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    from_weights = Unet3D.from_state_dict({"model": file["model"]})
    key = "init_conv.weight"
    assert torch.equal(from_weights.state_dict()[key], file["model"][f"denoise_fn.{key}"])


@pytest.mark.parametrize("prefix", ["module.", "denoise_fn.", "_orig_mod.", "denoise_fn.module."])
def test_a_network_is_rebuilt_from_under_a_prefix(prefix):
    unet = tiny_unet()
    wrapped = {prefix + name: tensor for name, tensor in unet.state_dict().items()}
    wrapped["betas"] = torch.ones(3)
    before = copy.copy(wrapped)
    again = Unet3D.from_state_dict(wrapped)
    assert_same_tensors(again.state_dict(), unet.state_dict())
    assert wrapped.keys() == before.keys()


def test_what_tensors_do_not_tell_can_be_said():
    unet = tiny_unet(resnet_groups=4)
    again = Unet3D.from_state_dict(unet.state_dict(), resnet_groups=4)
    assert again.config["resnet_groups"] == 4
    assert again.mid_block1.block1.norm.num_groups == 4


def test_tensors_of_another_network():
    message = (
        "Unet3D: the state dict must hold the tensors of a Unet3D, among them init_conv.weight, "
        "got 2 others, such as ['weight', 'bias']; pass the state dict of a Unet3D or "
        "GaussianDiffusion, or a training file"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Unet3D.from_state_dict(torch.nn.Linear(2, 2).state_dict())


def test_the_name_of_a_file_is_no_state_dict():
    with pytest.raises(TypeError, match="state dict must be a dict, got str; read a file with"):
        Unet3D.from_state_dict("model-1.pt")
