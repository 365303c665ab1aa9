"""Compilation of the network's repeated layers, each on its own."""

from __future__ import annotations

import inspect
import itertools
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from video_diffusion_pytorch.model.attention import (
    LinearAttentionLayer,
    SpatialAttention,
    TemporalAttention,
)
from video_diffusion_pytorch.model.blocks import ResnetBlock

# The layers between which the network only adds, joins and resamples
LAYERS = (ResnetBlock, SpatialAttention, LinearAttentionLayer, TemporalAttention)

# Graphs of one layer: with and without gradient, autocast, mask and images, of one and more clips.
# torch's own limit is 8, after which a layer runs uncompiled.
_GRAPHS = 32

_numbers = itertools.count()


def compile_blocks(network: nn.Module, **options: Any) -> None:
    """Compiles each residual block and attention layer of a network when it is first called.

    Dozens of small graphs are compiled sooner than one large one, equal ones share their kernels in
    torch's cache, and a layer that meets another shape is compiled again alone. Weights, names in
    the state dict and results stay as they are, up to rounding. A copy by `copy.deepcopy` or
    `pickle` is not compiled, and may be compiled itself.

    Args:
        network: A `Unet3D`, or any module that has layers of these classes inside, wrapped or
            not; it is changed in place.
        **options: Keywords of `torch.compile`, such as `mode`, `dynamic`, `fullgraph` and
            `backend`.

    Raises:
        TypeError: If `torch.compile` does not know an option.
        ValueError: If there is no such layer in `network`.

    Example:
        >>> from video_diffusion_pytorch import Unet3D
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
        >>> names = list(unet.state_dict())
        >>> compile_blocks(unet)
        >>> list(unet.state_dict()) == names
        True
    """
    layers = [layer for layer in network.modules() if isinstance(layer, LAYERS)]
    if not layers:
        names = ", ".join(layer.__name__ for layer in LAYERS)
        raise ValueError(
            f"compile_blocks: network must have layers of {names}, as Unet3D has, got "
            f"{type(network).__name__} without any; call its own compile() instead"
        )
    # torch versions without this option have torch._dynamo.config.cache_size_limit for everybody
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options = {"recompile_limit": _GRAPHS, **options}
    for layer in layers:
        # torch.nn.Module.compile sets this attribute, too, which calls then prefer and which
        # copies, pickles and state dicts leave out; there is no public way to give it a function
        layer._compiled_call_impl = torch.compile(_own_call(layer), **options)


def _call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls a layer, hooks included, as if it were not compiled."""
    return layer._call_impl(*args, **kwargs)


def _own_call(layer: nn.Module) -> MethodType:
    """`_call` of one layer, as a function with a code object of its own.

    torch.compile counts its graphs, looks them up, and notes which sizes have varied, per
    code object. With the one that all modules share, all layers but the first eight would run
    uncompiled (`torch._dynamo.config.recompile_limit`), and channels, height and width would be
    taken for sizes that change from call to call.
    """
    name = f"call_{type(layer).__name__}_{next(_numbers)}"
    code = _call.__code__.replace(co_name=name)
    return MethodType(FunctionType(code, _call.__globals__, name), layer)
