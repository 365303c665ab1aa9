"""State dicts of the reference's versions 0.6.0 to 0.7.0: names, checks and settings."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Where a module of ours stands in the reference. `{i}` is a level's number.
RENAMES = {
    "init_temporal_attn.norm.": "init_temporal_attn.fn.norm.",
    "init_temporal_attn.attn.": "init_temporal_attn.fn.fn.fn.",
    "mid_spatial_attn.norm.": "mid_spatial_attn.fn.norm.",
    "mid_spatial_attn.attn.": "mid_spatial_attn.fn.fn.fn.",
    "mid_temporal_attn.norm.": "mid_temporal_attn.fn.norm.",
    "mid_temporal_attn.attn.": "mid_temporal_attn.fn.fn.fn.",
    "downs.{i}.block1.": "downs.{i}.0.",
    "downs.{i}.block2.": "downs.{i}.1.",
    "downs.{i}.spatial_attn.norm.": "downs.{i}.2.fn.norm.",
    "downs.{i}.spatial_attn.attn.": "downs.{i}.2.fn.fn.",
    "downs.{i}.temporal_attn.norm.": "downs.{i}.3.fn.norm.",
    "downs.{i}.temporal_attn.attn.": "downs.{i}.3.fn.fn.fn.",
    "downs.{i}.resample.": "downs.{i}.4.",
    "ups.{i}.block1.": "ups.{i}.0.",
    "ups.{i}.block2.": "ups.{i}.1.",
    "ups.{i}.spatial_attn.norm.": "ups.{i}.2.fn.norm.",
    "ups.{i}.spatial_attn.attn.": "ups.{i}.2.fn.fn.",
    "ups.{i}.temporal_attn.norm.": "ups.{i}.3.fn.norm.",
    "ups.{i}.temporal_attn.attn.": "ups.{i}.3.fn.fn.fn.",
    "ups.{i}.resample.": "ups.{i}.4.",
}
# The reference stores the rotary frequencies, which all temporal attentions share, in each.
ROTARY = "rotary_emb.freqs"
# A buffer of networks conditioned on the log-SNR, which no shape shows
LOG_SNR_INPUT = "log_snr_input"
# Widths of the heads, over frames and over pixels, where their number follows from the channels
HEAD_WIDTHS = "head_widths"


def _rename(key: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        match = re.match(re.escape(old).replace(r"\{i\}", r"(\d+)"), key)
        if match:
            number = match.group(1) if match.groups() else ""
            return new.replace("{i}", number) + key[match.end() :]
    return key


def _from_reference(key: str) -> str:
    """Our name of a tensor of a Unet3D, from the reference's name or ours."""
    if key.endswith("." + ROTARY):
        return ROTARY
    return _rename(key, {theirs: ours for ours, theirs in RENAMES.items()})


def read_reference_state_dict(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Renames the reference's tensors to ours, in place, before `Unet3D` loads them.

    Raises:
        ValueError: If the file's normalisation, heads or time input differ from the network's.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + _from_reference(key.removeprefix(prefix))] = state_dict.pop(key)
    if not any(key.startswith(prefix) for key in state_dict):
        return
    # the frequencies are a constant, which some versions of the rotary library do not store
    state_dict.setdefault(prefix + ROTARY, module.get_parameter(ROTARY))
    keys = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
    _check_norm(module, keys)
    if "init_conv.weight" in keys:
        _check_time_input(module, keys)
        _check_head_widths(module, state_dict.get(prefix + HEAD_WIDTHS))


def _check_norm(module: nn.Module, keys: set[str]) -> None:
    own = {key for key, _ in module.named_parameters()}
    group, rms = "mid_block1.block1.norm.weight", "mid_block1.block1.norm.gamma"
    if group in keys and group not in own:
        raise ValueError(
            "Unet3D: the state dict must have the network's normalisation, RMSNorm, got GroupNorm "
            "(reference versions 0.6.x); build the network with resnet_groups=8"
        )
    if rms in keys and rms not in own:
        raise ValueError(
            "Unet3D: the state dict must have the network's normalisation, GroupNorm, got RMSNorm "
            "(reference version 0.7.0); build the network without resnet_groups"
        )


def _check_time_input(module: nn.Module, keys: set[str]) -> None:
    own = {name for name, _ in module.named_buffers()}
    if (LOG_SNR_INPUT in keys) == (LOG_SNR_INPUT in own):
        return
    wanted, got = ("step", "log_snr") if LOG_SNR_INPUT in keys else ("log_snr", "step")
    raise ValueError(
        f"Unet3D: the state dict must be of a network with the same time_input, {wanted!r}, got "
        f"{got!r}; build the network with time_input={got!r}"
    )


def _check_head_widths(module: nn.Module, theirs: Tensor | None) -> None:
    own = dict(module.named_buffers()).get(HEAD_WIDTHS)
    ours, found = (None if t is None or t.is_meta else tuple(t.tolist()) for t in (own, theirs))
    if (own is None) == (theirs is None) and ours == found:
        return
    words = "as many as suit heads of {} channels over frames and {} over pixels"
    said = ["attn_heads" if t is None else words.format(*t) for t in (ours, found)]
    raise ValueError(
        f"Unet3D: the state dict must be of a network with the same heads, {said[0]}, got "
        f"{said[1]}; build the network with its attn_heads, attn_dim_head and "
        "spatial_attn_dim_head"
    )


def to_reference_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Gives tensors the names that version 0.7.0 (or, with GroupNorm, 0.6.x) has for them.

    Args:
        state_dict: Of a `Unet3D`, of a `GaussianDiffusion`, or a training file with `model`
            and `ema`, of which then all is kept that the reference's Trainer reads.

    Returns:
        The same tensors under the reference's names; those of options that it lacks (classes,
        frame conditions, value ranges) keep ours.
    """
    if "model" in state_dict and "ema" in state_dict:
        weights = {name: to_reference_state_dict(state_dict[name]) for name in ("model", "ema")}
        return {"step": state_dict["step"], **weights, "scaler": state_dict.get("scaler") or {}}
    renamed: dict[str, Any] = {}
    for key, value in state_dict.items():
        prefix = "denoise_fn." if key.startswith("denoise_fn.") else ""
        name = key.removeprefix(prefix)
        if name == ROTARY:
            continue
        renamed[prefix + _rename(name, RENAMES)] = value
        if re.search(r"temporal_attn\.attn\.to_qkv\.weight$", name):
            in_layer = _rename(name, RENAMES).removesuffix("to_qkv.weight") + ROTARY
            renamed[prefix + in_layer] = state_dict[prefix + ROTARY]
    return renamed


def unet_config_from_state_dict(
    state_dict: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Finds a Unet3D's tensors, and the keywords with which such a network is built.

    Args:
        state_dict: As in `Unet3D.from_state_dict`.

    Returns:
        The tensors under our names, and the keywords of `Unet3D`.

    Raises:
        ValueError: If there is no Unet3D in it.
    """
    for averaged_first in ("ema", "model"):
        if isinstance(state_dict.get(averaged_first), Mapping):
            state_dict = state_dict[averaged_first]
    first = next((key for key in state_dict if key.endswith("init_conv.weight")), None)
    if first is None:
        raise ValueError(
            "Unet3D: the state dict must hold the tensors of a Unet3D, among them "
            f"init_conv.weight, got {len(state_dict)} others, such as {list(state_dict)[:3]}; "
            "pass the state dict of a Unet3D or GaussianDiffusion, or a training file"
        )
    prefix = first.removesuffix("init_conv.weight")
    ours = {
        _from_reference(key.removeprefix(prefix)): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    return ours, {**_of_reference(ours), **_beyond_reference(ours)}


def _of_reference(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those keywords that the reference has, too."""
    init_dim, channels, _, kernel, _ = ours["init_conv.weight"].shape
    cond_channels = ours["null_cond_video"].shape[1] if "null_cond_video" in ours else 0
    dim = ours["time_mlp.1.weight"].shape[1]
    widths = [ours[f"downs.{i}.block1.block1.proj.weight"].shape[0] for i in range(_levels(ours))]
    heads, dim_head, _ = _heads(ours)
    return {
        "dim": dim,
        "cond_dim": ours["null_cond_emb"].shape[1] if "null_cond_emb" in ours else None,
        "out_dim": ours["final_conv.1.weight"].shape[0],
        "dim_mults": tuple(width // dim for width in widths),
        "channels": channels - cond_channels,
        "attn_heads": heads,
        "attn_dim_head": dim_head,
        "init_dim": init_dim,
        "init_kernel_size": kernel,
        "use_sparse_linear_attn": any(
            key.endswith("spatial_attn.attn.to_qkv.weight") and value.ndim == 4
            for key, value in ours.items()
        ),
        "resnet_groups": 8 if "mid_block1.block1.norm.weight" in ours else None,
    }


def _beyond_reference(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of the options that the reference lacks."""

    def length(name: str, axis: int, none: Any = None) -> Any:
        return ours[name].shape[axis] if name in ours else none

    classes, levels = length("label_emb.weight", 0), range(_levels(ours))
    spatial = {i: ours.get(f"downs.{i}.spatial_attn.attn.to_qkv.weight") for i in levels}
    softmax = {i for i, weight in spatial.items() if weight is not None and weight.ndim == 2}
    temporal = tuple(i for i in levels if f"downs.{i}.temporal_attn.attn.to_qkv.weight" in ours)
    emb_dim, dim = ours["time_mlp.1.weight"].shape
    return {
        # the last class is none
        "num_classes": None if classes is None else classes - 1,
        "frame_cond_dim": length("null_frame_cond", 2),
        "cond_channels": length("null_cond_video", 1, 0),
        "num_text_tokens": length("null_text_tokens", 1),
        "text_pooling": "attention" if "text_pooling.queries" in ours else "mean",
        "blocks_per_level": len(
            {k for k in ours if re.match(r"downs\.0\.block\d+\.mlp\.1\.bias", k)}
        ),
        "attn_after_each_block": any(re.match(r"downs\.\d+\.\w+_attn1\.", key) for key in ours),
        "full_attn_levels": tuple(sorted(softmax)),
        "temporal_attn_levels": None if len(temporal) == len(levels) else temporal,
        "spatial_attn_dim_head": _heads(ours)[2],
        "emb_dim": None if emb_dim == 4 * dim else emb_dim,
        "emb_layers": len({k for k in ours if re.match(r"time_mlp\.\d+\.weight", k)}),
        "time_input": "log_snr" if LOG_SNR_INPUT in ours else "step",
    }


def _levels(ours: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[1] for key in ours if key.startswith("downs.")})


def _heads(ours: Mapping[str, Tensor]) -> tuple[int | None, int, int]:
    """Number of heads, None if it grows with the channels, and widths over frames and pixels."""
    if HEAD_WIDTHS in ours:
        temporal, spatial = ours[HEAD_WIDTHS].tolist()
        return None, temporal, spatial
    heads = ours["time_rel_pos_bias.relative_attention_bias.weight"].shape[1]
    inner = (
        ours[f"mid_{kind}_attn.attn.to_out.weight"].shape[1] for kind in ("temporal", "spatial")
    )
    temporal, spatial = (width // heads for width in inner)
    return heads, temporal, spatial
