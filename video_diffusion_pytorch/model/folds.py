"""Videos `(b, c, f, h, w)` as rows of frames or pixels, and back.

Written in torch's own operations rather than as einops patterns: torch.compile traces einops'
parsing of a pattern anew at each call, which was three quarters of the time it took for a network.
"""

from torch import Tensor


def frames_as_images(x: Tensor) -> Tensor:
    """`b c f h w -> (b f) c h w`; of a channels-last video this is a view."""
    return x.transpose(1, 2).flatten(0, 1)


def images_as_frames(images: Tensor, b: int) -> Tensor:
    """`(b f) c h w -> b c f h w`, the way back from `frames_as_images`."""
    return images.unflatten(0, (b, -1)).transpose(1, 2)


def frames_as_rows(x: Tensor) -> Tensor:
    """`b c f h w -> (b f) (h w) c`: a row per frame, its pixels in order."""
    return x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)


def rows_as_frames(rows: Tensor, b: int, h: int) -> Tensor:
    """`(b f) (h w) c -> b c f h w`, the way back from `frames_as_rows`."""
    return rows.unflatten(1, (h, -1)).unflatten(0, (b, -1)).permute(0, 4, 1, 2, 3)


def pixels_as_rows(x: Tensor) -> Tensor:
    """`b c f h w -> (b h w) f c`: a row per pixel, its frames in order."""
    return x.permute(0, 3, 4, 2, 1).flatten(0, 2)


def rows_as_pixels(rows: Tensor, b: int, h: int) -> Tensor:
    """`(b h w) f c -> b c f h w`, the way back from `pixels_as_rows`."""
    return rows.unflatten(0, (b, h, -1)).permute(0, 4, 3, 1, 2)
