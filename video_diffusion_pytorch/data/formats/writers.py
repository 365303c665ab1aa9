"""Writers of mp4 films and webp animations."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
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


_HAS_ALPHA, _IS_ANIMATION = 0x10, 0x02
_DO_NOT_BLEND = 0x02


def encode_webp(pixels: np.ndarray, durations: Sequence[int]) -> bytes:
    """Put frames one by one into a webp without loss.

    libwebp's own animations merge equal consecutive frames into one that is shown longer, so that
    the number of frames gets lost. So it encodes single pictures here, and they are put together as
    in the WebP Container Specification, "Animation".

    Args:
        pixels: `(f, h, w, c)` uint8 with 1, 3 or 4 channels, sides up to 16383.
        durations: Milliseconds for each frame, below 2 ** 24.

    Returns:
        The content of the file, which viewers repeat for ever.

    Example:
        >>> encode_webp(np.zeros((2, 4, 4, 3), np.uint8), [40, 40])[:16]
        b'RIFF...WEBPVP8X'
    """
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    _, h, w, c = pixels.shape
    flags = _IS_ANIMATION | (_HAS_ALPHA if c == 4 else 0)
    chunks = [
        _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _uint24(w - 1) + _uint24(h - 1)),
        _chunk(b"ANIM", bytes(4) + bytes(2)),  # no background colour, no end
    ]
    for index, (frame, duration) in enumerate(zip(pixels, durations, strict=True)):
        top, bottom, left, right = _changed_box(pixels[index - 1], frame) if index else (0, h, 0, w)
        header = [left // 2, top // 2, right - left - 1, bottom - top - 1, duration]
        picture = _encode_picture(frame[top:bottom, left:right])
        chunks.append(
            _chunk(b"ANMF", b"".join(map(_uint24, header)) + bytes([_DO_NOT_BLEND]) + picture)
        )
    return _chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def _encode_picture(picture: np.ndarray) -> bytes:
    """The chunk of a still webp that holds its pixels."""
    from PIL import Image as pillow

    file = BytesIO()
    # exact: also the colours of transparent pixels
    pillow.fromarray(picture).save(file, "WEBP", lossless=True, exact=True)
    content = file.getvalue()[12:]
    assert content.startswith(b"VP8L"), "expected nothing but pixels in a still webp"
    return content


def _changed_box(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what changed, at least a pixel; top and left are even."""
    changed = (before != after).any(axis=-1)
    if not changed.any():
        return 0, 1, 0, 1
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    return (
        int(rows[0]) // 2 * 2,
        int(rows[-1]) + 1,
        int(columns[0]) // 2 * 2,
        int(columns[-1]) + 1,
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _uint24(number: int) -> bytes:
    return number.to_bytes(3, "little")
