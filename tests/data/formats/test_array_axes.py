"""Which axes of an array are channels, frames, height and width."""

from pathlib import Path

import pytest

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.arrays import check_axes, resolve_axes

FILE = Path("scan.npy")


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((3, 10, 64, 64), None, ("cfhw", 3)),
        ((10, 3, 64, 64), None, ("fchw", 3)),
        ((10, 64, 64, 3), None, ("fhwc", 3)),
        ((10, 64, 64, 1), None, ("fhwc", 1)),
        ((4, 20, 8, 8), None, ("cfhw", 4)),
        ((80, 20, 8, 8), 80, ("cfhw", 80)),
        ((3, 1, 8, 8), 1, ("fchw", 1)),
        ((3, 1, 8, 8), 3, ("cfhw", 3)),
    ],
)
def test_told_from_the_shape(shape, channels, expected):
    assert resolve_axes(shape, None, channels, FILE) == expected


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "expected"),
    [
        ((3, 3, 8, 8), "fchw", None, ("fchw", 3)),
        ((20, 8, 8), "fhw", None, ("fhw", 1)),
        ((20, 8, 8), "hwf", 1, ("hwf", 1)),
        ((8, 8), "hw", None, ("hw", 1)),
        ((70, 8, 8), "chw", None, ("chw", 70)),
        ((8, 9, 10, 11), "whfc", 11, ("whfc", 11)),
    ],
)
def test_stated(shape, axes, channels, expected):
    assert resolve_axes(shape, axes, channels, FILE) == expected


@pytest.mark.parametrize(
    ("shape", "channels", "text"),
    [
        ((3, 3, 8, 8), None, r"\(3, 3, 8, 8\), which fits cfhw and fchw; state"),
        ((3, 8, 8, 3), 3, "which fits cfhw and fhwc; state"),
        ((1, 1, 8, 1), 1, "which fits cfhw and fchw and fhwc; state"),
        ((9, 8, 8, 8), None, "with no axis for 1 to 4 channels in it; state"),
        ((9, 3, 8, 8), 1, "with no axis for 1 channels in it; state"),
        ((9, 8, 8), None, r"\(9, 8, 8\), of 3 axes rather than four; state the order, for ex"),
        ((9, 8, 8), 1, "of 3 axes rather than four"),
        ((8, 8), None, "of 2 axes rather than four"),
        ((1, 3, 9, 8, 8), None, "of 5 axes rather than four"),
    ],
)
def test_never_guessed(shape, channels, text):
    start = (
        "cannot read scan.npy: expected an array whose axes can be told: one of cfhw, fchw, fhwc"
    )
    with pytest.raises(UnreadableVideoError, match=f"{start} .*{text}"):
        resolve_axes(shape, None, channels, FILE)


def test_statements_that_do_not_fit():
    with pytest.raises(
        UnreadableVideoError, match=r"expected the axes 'fhw', got the shape \(2, 3\)"
    ):
        resolve_axes((2, 3), "fhw", None, FILE)
    text = r"expected 3 channels, got 4 in the shape \(9, 4, 8, 8\) with the axes 'fchw'; correct"
    with pytest.raises(UnreadableVideoError, match=text):
        resolve_axes((9, 4, 8, 8), "fchw", 3, FILE)
    with pytest.raises(UnreadableVideoError, match="expected 3 channels, got 1"):
        resolve_axes((9, 8, 8), "fhw", 3, FILE)


@pytest.mark.parametrize("axes", ["", "fc", "fhww", "bcfhw", "FHW", "f h w"])
def test_no_order_of_axes(axes):
    with pytest.raises(ValueError, match=f"axes must name the stored .* got '{axes}'; pass for ex"):
        check_axes(axes)
