"""Writing of videos: gif, webp, mp4, npy and contact sheets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange

from video_diffusion_pytorch.data.formats.field_files import kind_of_fields
from video_diffusion_pytorch.data.formats.fields import Layout, layout_of
from video_diffusion_pytorch.data.formats.readers import CHANNELS_TO_MODE
from video_diffusion_pytorch.data.formats.write_fields import write_fields
from video_diffusion_pytorch.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_ENDINGS = (".gif", ".webp", ".mp4", ".png")
"""Extensions of the viewable files that `write_video` writes."""

_DEFAULT_CRF = 18.0


def write_video(
    video: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    fps: float | Fraction = 8.0,
    crf: float | None = None,
    columns: int | None = None,
    like: str | os.PathLike[str] | None = None,
    variables: str | Sequence[str] | None = None,
    dims: Mapping[str, str] | str | None = None,
    fit: str = "cover",
    first_frame: int = 0,
    frame_skip: float = 1,
) -> None:
    """Writes a clip in the format of the file's extension; it appears complete or not at all.

    - `.gif`: grey exactly, else up to 256 colours per frame, opacity on or off; the duration of a
      frame is rounded to 10 milliseconds.
    - `.webp`: lossless.
    - `.mp4`: H.264, plays everywhere. Odd sides get one more row or column, a copy of the last one;
      transparent pixels become black.
    - `.png`: all frames side by side in one picture, lossless.
    - `.npy`: the unchanged values, `(c, f, h, w)`, for NumPy.
    - `.nc`, `.h5`, `.zarr`, `.zarr.zip`, `.nii`, `.nii.gz`: the unchanged values, float32, with the
      names, units and coordinates of another file of this kind.

    Args:
        video: `(c, f, h, w)` with 1, 3 or 4 channels, any number for `.npy` and fields: floats,
            clamped to [0, 1] and rounded to the nearest of 256 levels, or uint8. For NetCDF, HDF5
            and Zarr also several, `(n, c, f, h, w)`, along a dimension `sample`.
        path: The file to write or replace.
        fps: Frames per second, 0.01 to 1000, up to 50 for `.gif`. Floats close to a fraction such
            as 30000/1001 are stored as this fraction. `.png` and `.npy` have no clock.
        crf: Compression of `.mp4`, 0 to 51: 0 is almost lossless, 23 a small file; None for 18.
        columns: Frames in a row of a `.png`; None for a nearly square picture.
        like: For fields: the other file. Coordinates of height and width are those of the places of
            the pixels, also if frames were scaled; those of frames go on after its end.
        variables: The variables of `like` that the channels are, as in `Dataset`.
        dims: What the dimensions of `like` are, as in `Dataset`.
        fit: How frames of `like` were scaled, as in `Dataset`.
        first_frame: The number of the first frame on the timeline of `like`, in frames of the
            video: for a forecast, the number of frames that were known.
        frame_skip: How many frames of `like` there are from one to the next frame of the video.

    Raises:
        FileNotFoundError: The folder or `like` is missing.
        ImportError: The library that writes the file is not installed.
        ValueError: The clip, the name or an option is invalid.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(torch.rand(3, 5, 8, 8), f"{folder}/noise.mp4", fps=24)
        ...     os.listdir(folder)
        ['noise.mp4']
    """
    target = Path(path)
    ending = target.suffix.lower()
    if kind_of_fields(target) is not None:
        _check_options(ending, fps, crf, columns)
        layout = layout_of(variables, dims)
        _write_like(video, target, like, layout, fit, first_frame, frame_skip)
        return
    _check_target(target, (*PICTURE_ENDINGS, ".npy"))
    if like is not None:
        raise ValueError(
            f"like must go with a file of fields, such as .nc, got {target.name}; leave it out"
        )
    _check_options(ending, fps, crf, columns)
    if ending == ".npy":
        _write_npy(video, target)
        return
    if ending == ".gif":
        video_tensor_to_gif(video, target, duration=10 * round(100 / fps))
        return
    pixels = _to_pixels(video)
    with replacing(target) as unfinished:
        if ending == ".webp":
            unfinished.write_bytes(_encode_webp(pixels, fps))
        elif ending == ".mp4":
            _write_mp4(pixels, unfinished, fps, _DEFAULT_CRF if crf is None else crf)
        else:
            _to_sheet(pixels, columns).save(unfinished, format="PNG")


def video_tensor_to_gif(
    tensor: torch.Tensor,
    path: str | os.PathLike[str],
    duration: float = 120,
    loop: int | None = 0,
    optimize: bool = True,
) -> list[Image]:
    """Writes a clip as a gif; the file appears complete or not at all.

    Grey clips are stored exactly, coloured ones in up to 256 colours per frame. A gif's opacity is
    on or off: from 0.5 up a pixel is opaque. Every frame of the clip is a frame of the file, even
    if nothing moves.

    Args:
        tensor: `(c, f, h, w)` with 1, 3 or 4 channels: floats, clamped to [0, 1] and rounded to the
            nearest of 256 levels, or uint8.
        path: The file to write or replace; its name ends in `.gif`.
        duration: Milliseconds per frame, stored in steps of 10.
        loop: Number of repetitions; 0 repeats forever, None shows the clip once.
        optimize: Store only the rectangle that changed since the frame before.

    Returns:
        The frames as Pillow pictures, with all their colours.

    Raises:
        FileNotFoundError: The folder is missing.
        ValueError: The tensor or the name is invalid.

    Differs from the reference: returns a list, rounds rather than truncates, keeps every frame.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frames = video_tensor_to_gif(torch.rand(1, 5, 8, 6), f"{folder}/noise.gif")
        >>> len(frames), frames[0].size
        (5, (6, 8))
    """
    target = Path(path)
    frames = _to_images(_to_pixels(tensor))
    _check_target(target, (".gif",))
    content = _encode_gif(frames, duration, loop, optimize)
    with replacing(target) as unfinished:
        unfinished.write_bytes(content)
    return frames


def _write_npy(video: torch.Tensor, target: Path) -> None:
    if video.ndim != 4:
        raise ValueError(
            "the clip's shape must be (channels, frames, height, width), got "
            f"{tuple(video.shape)}; pass one clip, not a batch"
        )
    values = video.detach().cpu()
    if values.dtype == torch.bfloat16:
        values = values.float()  # NumPy has no such type; float32 holds all its values
    with replacing(target) as unfinished, unfinished.open("wb") as file:
        np.save(file, values.numpy())


def _write_like(
    video: torch.Tensor,
    target: Path,
    like: str | os.PathLike[str] | None,
    layout: Layout,
    fit: str,
    first_frame: int,
    frame_skip: float,
) -> None:
    if video.ndim not in (4, 5) or like is None:
        raise ValueError(
            f"a {target.suffix} must be written from (channels, frames, height, width), or several "
            f"of these, and like a file of its kind, got {tuple(video.shape)} and like={like}; "
            "pass like=, the file of a training clip"
        )
    write_fields(
        video.detach().cpu().float().numpy(),
        target,
        Path(like),
        layout=layout,
        fit=fit,
        first_frame=first_frame,
        frame_skip=frame_skip,
    )


def _write_mp4(pixels: np.ndarray, path: Path, fps: float | Fraction, crf: float) -> None:
    """H.264, 4:2:0, BT.709."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    rate = Fraction(float(fps)).limit_denominator(1001)
    pixels = _to_even_rgb(pixels)
    options = {"movflags": "faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Otherwise players guess from the size of the picture
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


def _encode_gif(frames: list[Image], duration: float, loop: int | None, optimize: bool) -> bytes:
    """Puts frames one by one into a gif.

    Pillow's own `save` merges equal consecutive frames into one that is shown longer, which loses
    the number of frames.
    """
    from PIL.GifImagePlugin import getdata, getheader

    mode, whole = frames[0].mode, (0, 0, *frames[0].size)
    chunks: list[bytes] = []
    for index, frame in enumerate(frames):
        is_partial = index and optimize and mode != "RGBA"
        box = _changed_box(frames[index - 1], frame) if is_partial else whole
        indexed = _to_indexed(frame.crop(box))
        if not index:
            info = {"duration": duration} if loop is None else {"duration": duration, "loop": loop}
            chunks += getheader(indexed, info=info)[0]
        options: dict[str, object] = {"duration": duration}
        if mode != "L":
            options["include_color_table"] = index > 0  # the first one's is in the header
        if mode == "RGBA":
            options |= {"transparency": 255, "disposal": 2}  # wipe before the next frame
        chunks += getdata(indexed, (box[0], box[1]), **options)
    return b"".join([*chunks, b";"])


def _to_indexed(frame: Image) -> Image:
    """Reduces a frame to at most 256 colours; index 255 of an RGBA frame is transparent."""
    from PIL import Image as pillow

    if frame.mode == "L":
        frame = frame.copy()
        frame.putpalette([level for level in range(256) for _ in "rgb"])
        return frame
    if frame.mode == "RGB":
        return frame.convert("P", palette=pillow.Palette.ADAPTIVE)
    indexed = frame.convert("RGB").convert("P", palette=pillow.Palette.ADAPTIVE, colors=255)
    palette = (indexed.getpalette() or [])[:765]
    indexed.putpalette(palette + [0] * (768 - len(palette)))
    clear = frame.getchannel("A").point(lambda opacity: 255 * (opacity < 128))
    indexed.paste(255, mask=clear.convert("1"))
    return indexed


def _changed_box(before: Image, after: Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels that changed, or of the first pixel."""
    from PIL import ImageChops

    changed = ImageChops.difference(before, after).getbbox(alpha_only=False)
    return changed or (0, 0, 1, 1)


_HAS_ALPHA, _IS_ANIMATION, _DO_NOT_BLEND = 0x10, 0x02, 0x02


def _encode_webp(pixels: np.ndarray, fps: float | Fraction) -> bytes:
    """Puts frames one by one into a webp without loss.

    libwebp's own animations merge equal consecutive frames into one that is shown longer, which
    loses the number of frames. So it encodes single pictures here, which are put together as in
    the WebP Container Specification, "Animation".
    """
    frames = _to_images(pixels)
    w, h = frames[0].size
    # Rounded to whole milliseconds, without accumulating the error
    times = [round(index * 1000 / fps) for index in range(len(frames) + 1)]
    flags = _IS_ANIMATION | (_HAS_ALPHA if frames[0].mode == "RGBA" else 0)
    chunks = [
        _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _uint24(w - 1) + _uint24(h - 1)),
        _chunk(b"ANIM", bytes(4) + bytes(2)),  # no background colour, no end
    ]
    for index, frame in enumerate(frames):
        whole = (0, 0, w, h)
        left, top, right, bottom = _changed_box(frames[index - 1], frame) if index else whole
        left, top = left // 2 * 2, top // 2 * 2  # only even ones can be stored
        duration = times[index + 1] - times[index]
        header = [left // 2, top // 2, right - left - 1, bottom - top - 1, duration]
        file = BytesIO()
        # exact: including the colours of transparent pixels
        frame.crop((left, top, right, bottom)).save(file, "WEBP", lossless=True, exact=True)
        content = b"".join(map(_uint24, header)) + bytes([_DO_NOT_BLEND]) + file.getvalue()[12:]
        chunks.append(_chunk(b"ANMF", content))
    return _chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _uint24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _to_sheet(pixels: np.ndarray, columns: int | None) -> Image:
    f, h, w, c = pixels.shape
    if columns is None:
        columns = min(f, max(1, round(math.sqrt(f * h / w))))
    rows = -(-f // columns)
    # Missing frames are black, or transparent
    cells = np.zeros((rows * columns, h, w, c), np.uint8)
    cells[:f] = pixels
    sheet = rearrange(cells, "(i j) h w c -> 1 (i h) (j w) c", j=columns)
    return _to_images(sheet)[0]


def _to_images(pixels: np.ndarray) -> list[Image]:
    from PIL import Image as pillow

    return [
        pillow.fromarray(array) for array in (pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    ]


def _check_target(target: Path, endings: tuple[str, ...]) -> None:
    if target.suffix.lower() not in endings:
        expected = " or ".join(map(repr, endings))
        raise ValueError(f"path must end in {expected}, got {target}; rename it")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"expected a folder at {target.parent} to write {target.name} into, found none; create "
            "it first"
        )


def _check_options(
    ending: str, fps: float | Fraction, crf: float | None, columns: int | None
) -> None:
    most = 50 if ending == ".gif" else 1000
    if not 0.01 <= fps <= most:  # also where it is NaN
        raise ValueError(
            f"fps must be 0.01 to {most} frames per second for {ending}, got {fps}; choose one in "
            "this range, or leave out frames"
        )
    limits = (("crf", crf, ".mp4", 0, 51), ("columns", columns, ".png", 1, math.inf))
    for name, value, owner, low, high in limits:
        if value is not None and not (ending == owner and low <= value <= high):
            raise ValueError(
                f"{name} must be {low} to {high} for {owner}, None for other files, got {value} "
                f"for {ending}; leave it out"
            )


def _to_pixels(tensor: torch.Tensor) -> np.ndarray:
    """Checks a clip and converts it to `(f, h, w, c)` uint8."""
    if tensor.ndim != 4 or tensor.shape[0] not in CHANNELS_TO_MODE or not tensor.numel():
        raise ValueError(
            "the clip's shape must be (channels, frames, height, width) with 1, 3 or 4 channels "
            f"and at least one frame, got {tuple(tensor.shape)}; pass one clip, not a batch, and "
            "choose the channels to show"
        )
    pixels = tensor.detach().cpu()
    if pixels.dtype != torch.uint8:
        if not pixels.is_floating_point():
            raise ValueError(
                f"the clip must hold floats in [0, 1] or uint8, got {pixels.dtype}; convert it "
                "with .float() or .to(torch.uint8)"
            )
        pixels = pixels.float()
        if pixels.isnan().any():
            raise ValueError(
                "the clip must hold numbers, got NaN in "
                f"{int(pixels.isnan().sum())} of {pixels.numel()} values; look for the step that "
                "made them, or replace them with torch.nan_to_num"
            )
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().numpy()
