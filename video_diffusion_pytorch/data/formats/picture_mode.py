"""First step of the path: a picture of any mode becomes one of 8 bit in 1, 3 or 4 channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from video_diffusion_pytorch.data.formats.video_reader import CHANNELS_TO_MODE

if TYPE_CHECKING:
    from PIL.Image import Image


def stored_channels(image: Image) -> int:
    """Give the number of channels that a picture's pixels have: 1, 3, or 4 with opacity.

    A transparent colour of a palette does not count: most gifs use it for what stays unchanged.

    Example:
        >>> from PIL import Image
        >>> [stored_channels(Image.new(mode, (1, 1))) for mode in ("I;16", "P", "LA")]
        [1, 3, 4]
    """
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        return 4
    return 1 if image.mode in ("1", "L", "F") or image.mode.startswith("I") else 3


def to_mode(image: Image, mode: str) -> Image:
    """Convert a picture of any mode without loss of range.

    Args:
        image: A picture; 16-bit grey is scaled to 8 bit, where Pillow would clip it.
        mode: L, RGB or RGBA.

    Raises:
        ValueError: The picture holds floats or 32-bit numbers, whose range nobody states.

    Example:
        >>> from PIL import Image
        >>> to_mode(Image.new("I;16", (1, 1), 65535), "RGB").getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        from PIL import Image as pillow

        levels = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        image = pillow.fromarray(levels.astype(np.uint8))
    elif image.mode in ("F", "I"):
        raise ValueError(
            f"the picture's mode must be one that states its range, got {image.mode!r}; store such "
            "numbers as .npy"
        )
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns of the direct way to RGB
    return image.convert(mode)


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
