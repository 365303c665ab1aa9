"""First step of the path, for arrays: which of their axes are channels, frames, height, width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from video_diffusion_pytorch.data.errors import unreadable

_COMMON_ORDERS = ("cfhw", "fchw", "fhwc")
_MAX_CHANNELS = 4
_EXPECTED = "an array whose axes can be told"


def check_axes(axes: str | None) -> None:
    """Refuse a statement of axes that no array can have.

    Raises:
        ValueError: `axes` does not consist of `h`, `w` and perhaps `c`, `f`, each once.

    Example:
        >>> check_axes("fhwc"), check_axes("hw"), check_axes(None)
        (None, None, None)
    """
    if axes is None:
        return
    if not {"h", "w"} <= set(axes) <= set("cfhw") or len(set(axes)) < len(axes):
        raise ValueError(
            "axes must name the stored order in the letters c (channels), f (frames), h, w, each "
            f"at most once and h and w always, got {axes!r}; pass for example 'fhwc' or 'fhw'"
        )


def resolve_axes(
    shape: Sequence[int], axes: str | None, channels: int | None, path: Path
) -> tuple[str, int]:
    """Tell the order of an array's axes.

    Args:
        shape: Of the array.
        axes: The order as somebody has stated it, such as "fhwc" or, of one channel, "fhw". None:
            an array of four axes has the one of the orders cfhw, fchw, fhwc that fits.
        channels: How many channels there must be; None for any number, or 1 to 4 where the order
            has to be told from the shape.
        path: The file, for the error's message.

    Returns:
        The order, and the number of channels.

    Raises:
        UnreadableVideoError: The shape does not fit, or fits more than one order.

    Example:
        >>> resolve_axes((10, 3, 64, 64), None, None, Path("a.npy"))
        ('fchw', 3)
    """
    if axes is None:
        axes = _tell(shape, channels, path)
    stored = dict(zip(axes, shape, strict=False)).get("c", 1)
    if len(axes) != len(shape):
        got = f"the shape {tuple(shape)}"
        raise unreadable(path, f"the axes {axes!r}", got, "state the axes that it has")
    if channels is not None and stored != channels:
        got = f"{stored} in the shape {tuple(shape)} with the axes {axes!r}"
        raise unreadable(path, f"{channels} channels", got, "correct channels or axes")
    return axes, stored


def _tell(shape: Sequence[int], channels: int | None, path: Path) -> str:
    allowed = range(1, _MAX_CHANNELS + 1) if channels is None else (channels,)
    fitting = [
        order
        for order in _COMMON_ORDERS
        if len(shape) == len(order) and shape[order.index("c")] in allowed
    ]
    if len(fitting) == 1:
        return fitting[0]
    wanted = "1 to 4 channels" if channels is None else f"{channels} channels"
    fits = f"which fits {' and '.join(fitting)}" if fitting else f"with no axis for {wanted} in it"
    if len(shape) != 4:
        fits = f"of {len(shape)} axes rather than four"
    raise unreadable(
        path,
        f"{_EXPECTED}: one of {', '.join(_COMMON_ORDERS)} with {wanted}",
        f"the shape {tuple(shape)}, {fits}",
        'state the order, for example axes="fhw" for frames, height and width',
    )
