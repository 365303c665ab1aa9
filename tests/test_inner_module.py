"""Both import paths of the reference hold all its names, with the same parameters."""

import importlib
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

API = json.loads((Path(__file__).parent / "golden" / "api_0.7.0.json").read_text())
NAMES = [(module, name) for module, names in API.items() for name in names]
STAR_IMPORT = """
Adam Attention BERT_MODEL_DIM Block CHANNELS_TO_MODE Dataset Downsample EMA EinopsToAndFrom F
GaussianDiffusion GradScaler Image LayerNorm Path PreNorm RMSNorm RelativePositionBias Residual
ResnetBlock RotaryEmbedding SinusoidalPosEmb SpatialLinearAttention T Trainer Unet3D Upsample
autocast bert_embed cast_num_frames check_shape copy cosine_beta_schedule cycle data default einsum
exists extract gif_to_tensor identity is_list_str is_odd math nn noop normalize_img num_to_groups
partial prob_mask_like rearrange rearrange_many seek_all_images tokenize torch tqdm unnormalize_img
utils video_tensor_to_gif
"""

# defaults that differ on purpose
DIFFERENT_DEFAULTS = {
    ("GaussianDiffusion.__init__", "channels"): "None",
    # clips may come from a dataset or a loader instead
    ("Trainer.__init__", "folder"): "None",
}
# `**` arguments that are new here, all of which go to a function that refuses unknown names
PASSED_ON = {("Trainer.__init__", "data_options")}
# further conditions, whose names are checked
PASSED_ON |= {
    (f"GaussianDiffusion.{name}", "conditions")
    for name in ("p_mean_variance", "p_sample", "p_sample_loop", "interpolate")
}
# `*args` of the reference, for which there are names here
NAMED_ARGUMENTS = {"Unet3D.forward_with_cond_scale": ["x", "time", "cond"]}


def default_of(parameter):
    default = parameter.default
    if default is parameter.empty:
        return None
    return f"<function {default.__name__}>" if inspect.isfunction(default) else repr(default)


def callables(name, entry, thing):
    """Each callable that the reference documents under a name: label, ours, its parameters."""
    if entry["kind"] == "function":
        yield name, thing, entry["parameters"]
        return
    for method, parameters in {"__init__": entry["init"], **entry["methods"]}.items():
        yield f"{name}.{method}", getattr(thing, method), parameters


def test_the_record_is_complete():
    assert len(NAMES) == 44


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{m[24:]}.{n}" for m, n in NAMES])
def test_every_name_has_the_references_parameters(module, name):
    thing, entry = getattr(importlib.import_module(module), name), API[module][name]
    if entry["kind"] == "value":
        assert repr(thing) == entry["value"]
        return
    assert inspect.isclass(thing) is (entry["kind"] == "class")
    for label, ours, expected in callables(name, entry, thing):
        parameters = [p for p in inspect.signature(ours).parameters.values() if p.name != "self"]
        of_ours = {p.name: p for p in parameters}
        for theirs in expected:
            if theirs["name"] == "args" and label in NAMED_ARGUMENTS:
                assert [p.name for p in parameters[:3]] == NAMED_ARGUMENTS[label]
                continue
            parameter = of_ours.pop(theirs["name"])
            default = DIFFERENT_DEFAULTS.get((label, theirs["name"]), theirs["default"])
            assert parameter.kind.name == theirs["kind"], (label, theirs["name"])
            assert default_of(parameter) == default, (label, theirs["name"])
        # in the same places, and what is new can be left out
        positional = [p["name"] for p in expected if p["kind"] == "POSITIONAL_OR_KEYWORD"]
        assert [p.name for p in parameters][: len(positional)] == positional, label
        for parameter in of_ours.values():
            named = parameter.name in NAMED_ARGUMENTS.get(label, [])
            named = named or (label, parameter.name) in PASSED_ON
            assert named or parameter.default is not parameter.empty, (label, parameter.name)


def test_star_import_gives_scripts_what_they_had(monkeypatch):
    # stands in for torchvision, which may be missing or not fit a CPU-only torch
    torchvision = {"transforms": SimpleNamespace(Resize=min), "utils": SimpleNamespace(save=max)}
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(**torchvision))
    for name, module in torchvision.items():
        monkeypatch.setitem(sys.modules, f"torchvision.{name}", module)
    scope = {}
    exec("from video_diffusion_pytorch.video_diffusion_pytorch import *", scope)
    names = STAR_IMPORT.split()
    assert len(names) == 59
    assert [name for name in names if name not in scope] == []
    assert scope["T"].Resize is min
    assert scope["utils"].save is max
    assert scope["Image"].new("L", (2, 3)).size == (2, 3)


def test_public_names_are_those_of_the_inner_module():
    package = importlib.import_module("video_diffusion_pytorch")
    inner = importlib.import_module("video_diffusion_pytorch.video_diffusion_pytorch")
    for name in ("Unet3D", "GaussianDiffusion", "Trainer"):
        assert getattr(package, name) is getattr(inner, name)
    for name in package.__all__:
        assert getattr(package, name) is not None
    # the reference binds its inner module and `text` so
    assert package.video_diffusion_pytorch is inner
    assert package.text.bert_embed is inner.bert_embed


def test_helpers_of_data_are_at_the_root_as_well():
    import video_diffusion_pytorch as root

    inner = root.video_diffusion_pytorch
    for name in ("Dataset", "gif_to_tensor", "video_tensor_to_gif", "num_to_groups"):
        assert getattr(root, name) is getattr(inner, name)
        assert name in root.__all__
