"""Helpers of the reference that scripts import: `exists`, `default`, `PreNorm` and others."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from video_diffusion_pytorch.model.blocks import LayerNorm


def exists(x: Any) -> bool:
    """Whether `x` is something other than None."""
    return x is not None


def identity(t: Any, *args: Any, **kwargs: Any) -> Any:
    """Gives its first argument back."""
    return t


def is_odd(n: int) -> bool:
    """Whether `n` is odd."""
    return n % 2 == 1


def default(val: Any, d: Any) -> Any:
    """`val`, or if that is None, `d` (called, where it is a function)."""
    if val is not None:
        return val
    return d() if callable(d) else d


def cycle(dl: Iterable[Any]) -> Iterator[Any]:
    """Goes through `dl` again and again."""
    while True:
        yield from dl


def num_to_groups(num: int, divisor: int) -> list[int]:
    """Splits `num` into groups of `divisor` and a rest."""
    full, rest = divmod(num, divisor)
    return [divisor] * full + [rest] * (rest > 0)


class Residual(nn.Module):
    """Adds a layer's input to its output.

    Args:
        fn: The layer.
    """

    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Gives `fn(x, ...) + x`."""
        return self.fn(x, *args, **kwargs) + x


class PreNorm(nn.Module):
    """Normalises the channels before a layer.

    Args:
        dim: Number of channels.
        fn: The layer, for `(b, dim, f, h, w)`.
    """

    def __init__(self, dim: int, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Gives `fn(norm(x), ...)`."""
        return self.fn(self.norm(x), **kwargs)


class EinopsToAndFrom(nn.Module):
    """Rearranges the axes for a layer, and back after it.

    Args:
        from_einops: Pattern of the input, such as `"b c f h w"`.
        to_einops: Pattern that the layer wants, such as `"b (h w) f c"`.
        fn: The layer.
    """

    def __init__(self, from_einops: str, to_einops: str, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.from_einops = from_einops
        self.to_einops = to_einops
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Gives the layer's output with the axes of `x`."""
        sizes = dict(zip(self.from_einops.split(), x.shape, strict=True))
        y = self.fn(rearrange(x, f"{self.from_einops} -> {self.to_einops}"), **kwargs)
        return rearrange(y, f"{self.to_einops} -> {self.from_einops}", **sizes)


class LazyModule:
    """A module that is imported when one of its attributes is first used.

    Args:
        name: The module's full name.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """Imports the module, and returns its attribute.

        Raises:
            ImportError: If the module's package is missing, or does not fit the others (as
                torchvision does not fit a CPU-only torch).
        """
        if attribute.startswith("__"):
            # doctest and inspect look for such names, which is no reason to import
            raise AttributeError(attribute)
        try:
            return getattr(importlib.import_module(self._name), attribute)
        except (ImportError, RuntimeError, OSError) as error:
            package = self._name.split(".")[0]
            raise ImportError(
                f"{self._name}.{attribute} needs {package}, which this library itself does not, "
                f"got {error}; run pip install {package}"
            ) from error
