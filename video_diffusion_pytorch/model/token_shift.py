"""Before an attention: some channels come from the next frame, row or column instead."""

import torch
import torch.nn.functional as F
from torch import Tensor

TOKEN_SHIFTS = (None, "time", "space", "both")


def shift_in_time(
    x: Tensor, focus_present_mask: Tensor | None = None, image_frames: int = 0
) -> Tensor:
    """Takes a quarter of the channels from the frame before and a quarter from the one after.

    Where there is no such frame they are zero: at both ends of a video, at images behind it, and
    everywhere in a video whose frames see only themselves.

    Args:
        x: `(rows, f + image_frames, c)`.
        focus_present_mask: Boolean `(rows,)`: where true, no frame sees another. None for nowhere.
        image_frames: How many frames at the end are images of their own.

    Example:
        >>> x = torch.arange(1.0, 4).view(1, 3, 1).expand(1, 3, 4)
        >>> shift_in_time(x)[0, :, 0].tolist(), shift_in_time(x)[0, :, 1].tolist()
        ([0.0, 1.0, 2.0], [2.0, 3.0, 0.0])
    """
    n, quarter = x.shape[1] - image_frames, x.shape[2] // 4
    before, after, kept = x.split((quarter, quarter, x.shape[2] - 2 * quarter), dim=-1)
    before = F.pad(before[:, : n - 1], (0, 0, 1, image_frames))
    after = F.pad(after[:, 1:n], (0, 0, 0, 1 + image_frames))
    moved = torch.cat((before, after), dim=-1)
    if focus_present_mask is not None:
        moved = moved.masked_fill(focus_present_mask.view(-1, 1, 1), 0)
    return torch.cat((moved, kept), dim=-1)


def shift_in_space(x: Tensor) -> Tensor:
    """Takes an eighth of the channels each from the pixel above, below, on the left and right.

    At the edges of a frame, where there is no such pixel, they are zero.

    Args:
        x: `(b, c, f, h, w)`.

    Example:
        >>> x = torch.arange(1.0, 5).view(1, 1, 1, 2, 2).expand(1, 8, 1, 2, 2)
        >>> shift_in_space(x)[0, 0, 0].tolist(), shift_in_space(x)[0, 3, 0].tolist()
        ([[0.0, 0.0], [1.0, 2.0]], [[2.0, 0.0], [4.0, 0.0]])
    """
    eighth = x.shape[1] // 8
    parts = x.movedim(1, -1).split((*[eighth] * 4, x.shape[1] - 4 * eighth), dim=-1)
    above, below, left, right, kept = parts
    above = F.pad(above[:, :, :-1], (0, 0, 0, 0, 1, 0))
    below = F.pad(below[:, :, 1:], (0, 0, 0, 0, 0, 1))
    left = F.pad(left[..., :-1, :], (0, 0, 1, 0))
    right = F.pad(right[..., 1:, :], (0, 0, 0, 1))
    return torch.cat((above, below, left, right, kept), dim=-1).movedim(-1, 1)
