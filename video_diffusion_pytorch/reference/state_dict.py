"""State dicts of the reference's versions 0.6.0 to 0.7.0: names, checks and settings."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_IN_LEVEL = {
    "block1.": "0.",
    "block2.": "1.",
    "spatial_attn.norm.": "2.fn.norm.",
    "spatial_attn.attn.": "2.fn.fn.",
    "temporal_attn.norm.": "3.fn.norm.",
    "temporal_attn.attn.": "3.fn.fn.fn.",
    "resample.": "4.",
}
# The place of a module of ours in the reference. `{i}` is the number of a level.
RENAMES = {
    "init_temporal_attn.norm.": "init_temporal_attn.fn.norm.",
    "init_temporal_attn.attn.": "init_temporal_attn.fn.fn.fn.",
    "mid_spatial_attn.norm.": "mid_spatial_attn.fn.norm.",
    "mid_spatial_attn.attn.": "mid_spatial_attn.fn.fn.fn.",
    "mid_temporal_attn.norm.": "mid_temporal_attn.fn.norm.",
    "mid_temporal_attn.attn.": "mid_temporal_attn.fn.fn.fn.",
    **{"downs.{i}." + ours: "downs.{i}." + theirs for ours, theirs in _IN_LEVEL.items()},
    **{"ups.{i}." + ours: "ups.{i}." + theirs for ours, theirs in _IN_LEVEL.items()},
}
# The reference stores the rotary frequencies, which all temporal attentions share, in each.
ROTARY = "rotary_emb.freqs"
# A buffer of networks conditioned on the log-SNR, which no shape shows
LOG_SNR_INPUT = "log_snr_input"
# Widths of the heads, over frames and over pixels, where their number follows from the channels
HEAD_WIDTHS = "head_widths"
# Attributes in which DDP, DataParallel and torch.compile hold the module that they wrap
_WRAPPERS = ("module", "_orig_mod")


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


def unwrap_names(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Renames tensors, in place, whose modules were wrapped otherwise than those of `module`.

    Args:
        module: The module to load them into.
        state_dict: Names may have the parts `module.` and `_orig_mod.` of wrapped modules.
        prefix: What the names of `module` begin with.

    Example:
        >>> tensors = {"module.weight": 1, "_orig_mod.module.bias": 2}
        >>> unwrap_names(nn.Linear(1, 1), tensors, "")
        >>> tensors
        {'weight': 1, 'bias': 2}
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = prefix + _unwrapped(module, key.removeprefix(prefix))
        # of two with the same name, torch reports one as unexpected
        if name not in state_dict:
            state_dict[name] = state_dict.pop(key)


def _unwrapped(module: nn.Module | None, key: str) -> str:
    """The name of a tensor with the wrappers that the module has, and no others."""
    found = []
    for part in key.split("."):
        inside = _holder(module, part)
        if inside is None and part in _WRAPPERS:
            continue
        wrappers, module = inside or ((), None)
        found += [*wrappers, part]
        module = None if module is None else module._modules.get(part)
    return ".".join(found)


def _holder(module: nn.Module | None, name: str) -> tuple[tuple[str, ...], nn.Module] | None:
    """The module that has an entry of a name, within its wrappers; None if it has none."""
    wrappers: tuple[str, ...] = ()
    while module is not None:
        if any(name in own for own in (module._modules, module._parameters, module._buffers)):
            return wrappers, module
        wrapper = next((one for one in _WRAPPERS if one in module._modules), "")
        wrappers, module = (*wrappers, wrapper), module._modules.get(wrapper)
    return None


def read_reference_state_dict(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Renames the reference's tensors to ours, in place, before `Unet3D` loads them.

    Raises:
        ValueError: If the file's normalisation, time input or heads differ from the network's.
    """
    unwrap_names(module, state_dict, prefix)
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + _from_reference(key.removeprefix(prefix))] = state_dict.pop(key)
    theirs = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if "init_conv.weight" not in theirs:
        return
    # the frequencies are a constant, which some versions of the rotary library do not store
    state_dict.setdefault(prefix + ROTARY, module.get_parameter(ROTARY))
    ours = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    for expected, got in zip(_hidden_settings(ours), _hidden_settings(theirs), strict=True):
        if got != expected:
            raise ValueError(
                f"Unet3D: the state dict must be of a network with {expected}, got {got}; build "
                "the network with the same keywords"
            )


def _hidden_settings(tensors: Mapping[str, Tensor]) -> tuple[str, str, str]:
    """Normalisation, time input and heads, which decide the meaning of weights of equal names."""
    norm, heads, widths = "RMSNorm (resnet_groups=None)", "attn_heads", tensors.get(HEAD_WIDTHS)
    if _has_group_norm(tensors):
        norm = "GroupNorm (resnet_groups=8 in versions 0.6.x)"
    if widths is not None:
        numbers = None if widths.is_meta else widths.tolist()
        heads = f"attn_heads=None, attn_dim_head and spatial_attn_dim_head {numbers}"
    return norm, f"time_input={_time_input(tensors)!r}", heads


def _has_group_norm(tensors: Mapping[str, Tensor]) -> bool:
    return "mid_block1.block1.norm.weight" in tensors


def _time_input(tensors: Mapping[str, Tensor]) -> str:
    return "log_snr" if LOG_SNR_INPUT in tensors else "step"


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
        TypeError: If it is not a dict.
        ValueError: If there is no Unet3D in it.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"Unet3D: the state dict must be a dict, got {type(state_dict).__name__}; read a file "
            "with torch.load, or with load_diffusion"
        )
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
    return ours, _config_of(ours)


def _config_of(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keywords of `Unet3D` that tensors determine."""

    def length(name: str, axis: int) -> int | None:
        return ours[name].shape[axis] if name in ours else None

    init_dim, all_channels, _, kernel, _ = ours["init_conv.weight"].shape
    cond_channels = length("null_cond_video", 1) or 0
    emb_dim, dim = ours["time_mlp.1.weight"].shape
    levels = range(len({key.split(".")[1] for key in ours if key.startswith("downs.")}))
    widths = [ours[f"downs.{i}.block1.block1.proj.weight"].shape[0] for i in levels]
    temporal = tuple(i for i in levels if f"downs.{i}.temporal_attn.attn.to_qkv.weight" in ours)
    # 4 axes of linear attention's weight, 2 of softmax attention's
    spatial = {i: ours.get(f"downs.{i}.spatial_attn.attn.to_qkv.weight") for i in levels}
    axes = {i: weight.ndim for i, weight in spatial.items() if weight is not None}
    heads, dim_head, spatial_dim_head = _heads(ours)
    # the last class is for no class
    classes = length("label_emb.weight", 0)
    return {
        "dim": dim,
        "cond_dim": length("null_cond_emb", 1),
        "out_dim": length("final_conv.1.weight", 0),
        "dim_mults": tuple(width // dim for width in widths),
        "channels": all_channels - cond_channels,
        "attn_heads": heads,
        "attn_dim_head": dim_head,
        "init_dim": init_dim,
        "init_kernel_size": kernel,
        "use_sparse_linear_attn": 4 in axes.values(),
        "resnet_groups": 8 if _has_group_norm(ours) else None,
        "num_classes": None if classes is None else classes - 1,
        "frame_cond_dim": length("null_frame_cond", 2),
        "cond_channels": cond_channels,
        "num_text_tokens": length("null_text_tokens", 1),
        "text_pooling": "attention" if "text_pooling.queries" in ours else "mean",
        "blocks_per_level": _count(r"downs\.0\.block\d+\.mlp\.1\.bias", ours),
        "attn_after_each_block": _count(r"downs\.\d+\.\w+_attn1\..*", ours) > 0,
        "full_attn_levels": tuple(i for i in axes if axes[i] == 2),
        "temporal_attn_levels": None if len(temporal) == len(levels) else temporal,
        "spatial_attn_dim_head": spatial_dim_head,
        "emb_dim": None if emb_dim == 4 * dim else emb_dim,
        "emb_layers": _count(r"time_mlp\.\d+\.weight", ours),
        "time_input": _time_input(ours),
    }


def _count(pattern: str, ours: Mapping[str, Tensor]) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in ours)


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
