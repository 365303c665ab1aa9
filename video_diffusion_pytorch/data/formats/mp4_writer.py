"""Part of the last step of the path: frames become an H.264 movie that plays everywhere."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np


def encode_mp4(pixels: np.ndarray, path: Path, fps: float | Fraction, crf: float) -> None:
    """Write frames into an mp4 (libx264, 4:2:0, BT.709).

    Odd sides get one more row or column, a copy of the last one; opacity is shown on black.

    Args:
        pixels: `(f, h, w, c)` uint8 with 1, 3 or 4 channels.
        path: The file, of any name.
        fps: Frames per second. Fractions with a denominator of at most 1001 are stored exactly.
        crf: x264's constant rate factor, 0 to 51; more is smaller and worse.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encode_mp4(np.zeros((2, 8, 8, 3), np.uint8), Path(folder, "a"), 8.0, 18.0)
        ...     Path(folder, "a").read_bytes()[4:12]
        b'ftypisom'
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    rate = Fraction(float(fps)).limit_denominator(1001)
    pixels = _to_even_rgb(pixels)
    options = {"movflags": "faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Players guess what is not said, from the size of the picture
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = int(Colorspace.ITU709)
        context.color_range = int(ColorRange.MPEG)
        for array in pixels:
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _to_even_rgb(pixels: np.ndarray) -> np.ndarray:
    _, h, w, c = pixels.shape
    if c == 4:
        opacity = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * opacity + 127) // 255).astype(np.uint8)
    elif c == 1:
        pixels = pixels.repeat(3, axis=-1)
    # Each sample of colour stands for two by two pixels
    return np.pad(pixels, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
