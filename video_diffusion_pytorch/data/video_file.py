"""First and last step of the path: a gif on disk becomes a clip, and a clip becomes a gif."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .gif_format import encode_gif, gif_is_complete

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS_TO_MODE = {1: "L", 3: "RGB", 4: "RGBA"}
"""Number of channels of a clip -> Pillow's name for such a picture."""


class UnreadableVideoError(ValueError):
    """A file is there, but no clip can be decoded from it; the message names the file."""


class ToTensor:
    """Turn a Pillow picture into a tensor, each pixel value divided by 255.

    Example:
        >>> from PIL import Image
        >>> ToTensor()(Image.new("RGB", (4, 2), "white")).shape
        torch.Size([3, 2, 4])
    """

    def __call__(self, image: Image) -> torch.Tensor:
        """Convert one picture.

        Args:
            image: A picture of mode L, RGB or RGBA.

        Returns:
            `(c, h, w)` float32 in [0, 1].

        Raises:
            ValueError: The picture has another mode.
        """
        if image.mode not in CHANNELS_TO_MODE.values():
            raise ValueError(
                f"the picture's mode must be one of {list(CHANNELS_TO_MODE.values())}, "
                f"got {image.mode!r}; convert it first, for example image.convert('RGB')"
            )
        # np.array copies: a view of Pillow's memory would be read-only, which torch warns about
        pixels = torch.from_numpy(np.array(image))
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        return pixels.permute(2, 0, 1).contiguous().float().div(255)

    def __repr__(self) -> str:
        return "ToTensor()"


_TO_TENSOR = ToTensor()


def seek_all_images(img: Image, channels: int = 3) -> Iterator[Image]:
    """Go through all frames of an opened picture file.

    Args:
        img: An opened Pillow image; its read position moves along.
        channels: 1 (grey), 3 (colour) or 4 (colour and opacity).

    Returns:
        An iterator over the frames, each converted to that many channels.

    Raises:
        ValueError: `channels` is none of 1, 3, 4.
    """
    mode = _mode_of(channels)

    def frames() -> Iterator[Image]:
        index = 0
        while True:
            try:
                img.seek(index)
            except EOFError:
                return
            yield img.convert(mode)
            index += 1

    return frames()


def gif_to_tensor(
    path: str | os.PathLike[str],
    channels: int = 3,
    transform: Callable[[Image], torch.Tensor] = _TO_TENSOR,
) -> torch.Tensor:
    """Read a gif (or any animation that Pillow knows: webp, apng) into a clip.

    Args:
        path: The file.
        channels: 1 (grey), 3 (colour) or 4 (colour and opacity).
        transform: Called with each frame; gives its `(c, h, w)` tensor.

    Returns:
        `(c, f, h, w)`; with the default `transform` float32 in [0, 1].

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is empty, cut short, damaged, not a picture, or larger than
            Pillow's limit against decompression bombs.
        ValueError: `channels` is none of 1, 3, 4.

    Differs from the reference: a file that was cut short is an error, not a shorter clip.
    """
    frames = [transform(frame) for frame in _decode_frames(Path(path), channels)]
    shapes = sorted({tuple(frame.shape) for frame in frames})
    if len(shapes) > 1:
        raise UnreadableVideoError(
            f"cannot make a clip of {path}: all frames must have one shape, got {shapes}; "
            "give a transform that resizes them, or remove the file"
        )
    return torch.stack(frames, dim=1)


def _mode_of(channels: int) -> str:
    if channels not in CHANNELS_TO_MODE:
        raise ValueError(
            f"channels must be one of {list(CHANNELS_TO_MODE)}, got {channels!r}; choose 1 for "
            "grey, 3 for colour, 4 for colour and opacity"
        )
    return CHANNELS_TO_MODE[channels]


def _decode_frames(file: Path, channels: int) -> list[Image]:
    from PIL import Image as pillow

    _mode_of(channels)
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected a video file at {file}, found none; check the path (working folder: "
            f"{Path.cwd()})"
        ) from error

    what_to_do = "fetch or write the file again, or remove it"
    cause: Exception | None = None
    if not content:
        got = "an empty file"
    elif content[:6] in (b"GIF87a", b"GIF89a") and not gif_is_complete(content):
        got = f"a gif cut short after {len(content)} bytes"
    else:
        try:
            # Pillow only warns of a picture of one to two times its limit
            with warnings.catch_warnings():
                warnings.simplefilter("error", pillow.DecompressionBombWarning)
                with pillow.open(BytesIO(content)) as image:
                    return list(seek_all_images(image, channels))
        except pillow.UnidentifiedImageError as error:
            got, cause = "bytes that Pillow does not take for a picture", error
        except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
            got, cause = f"a possible decompression bomb ({error})", error
            what_to_do = "if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        except Exception as error:  # Pillow's decoders raise almost every kind of error
            got, cause = f"{type(error).__name__}: {error}", error
    raise UnreadableVideoError(
        f"cannot read {file}: expected a complete gif or other animation, got {got}; {what_to_do}"
    ) from cause


def video_tensor_to_gif(
    tensor: torch.Tensor,
    path: str | os.PathLike[str],
    duration: float = 120,
    loop: int | None = 0,
    optimize: bool = True,
) -> list[Image]:
    """Write a clip as a gif; the file appears complete or not at all.

    Grey clips are stored exactly, coloured ones in up to 256 colours per frame. A gif's opacity is
    on or off: from 0.5 up a pixel is opaque. Every frame of the clip is a frame of the file, also
    where nothing moves.

    Args:
        tensor: `(c, f, h, w)` with 1, 3 or 4 channels: floats, clamped to [0, 1] and rounded to the
            nearest of 256 levels, or uint8.
        path: The file to write or replace; its name ends in `.gif`.
        duration: Milliseconds per frame, stored in steps of 10.
        loop: How often viewers repeat the clip; 0 is for ever, None leaves it out (shown once).
        optimize: Store of each later frame only the rectangle that changed.

    Returns:
        The frames as Pillow pictures, before their colours were reduced.

    Raises:
        FileNotFoundError: The folder to write into is missing.
        ValueError: The tensor, the name, `duration` or `loop` is not as described above.

    Differs from the reference: returns a list, rounds rather than cuts off, keeps every frame.

    Example:
        >>> import tempfile
        >>> clip = torch.rand(1, 5, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frames = video_tensor_to_gif(clip, f"{folder}/noise.gif")
        ...     again = gif_to_tensor(f"{folder}/noise.gif", channels=1)
        >>> len(frames), bool((again - clip).abs().max() <= 0.5 / 255 + 1e-6)
        (5, True)
    """
    from PIL import Image as pillow

    target = Path(path)
    pixels = _to_pixels(tensor)
    if target.suffix.lower() != ".gif":
        raise ValueError(f"path must end in '.gif', got {target}; rename it")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"expected a folder at {target.parent} to write {target.name} into, found none; create "
            "it first"
        )
    if not 0 <= duration <= 655350:
        raise ValueError(
            f"duration must be 0 to 655350 milliseconds per frame, got {duration}; a gif cannot "
            "store other times, choose one in this range"
        )
    if loop is not None and not 0 <= loop <= 65535:
        raise ValueError(
            f"loop must be None or 0 to 65535 repetitions, got {loop}; use 0 to repeat for ever"
        )

    mode = CHANNELS_TO_MODE[pixels.shape[-1]]
    arrays = pixels.squeeze(-1).numpy() if mode == "L" else pixels.numpy()
    frames = [pillow.fromarray(array) for array in arrays]
    content = encode_gif(frames, duration, loop, optimize)

    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return frames


def _to_pixels(tensor: torch.Tensor) -> torch.Tensor:
    """Check a clip and give it as `(f, h, w, c)` uint8 on the CPU."""
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
    return pixels.permute(1, 2, 3, 0).contiguous()
