"""Folds against einops' reading of the patterns that their docstrings give."""

import pytest
import torch
from einops import rearrange

from video_diffusion_pytorch.model import blocks as folds


@pytest.mark.parametrize(
    ("name", "back"),
    [
        ("frames_as_images", "images_as_frames"),
        ("frames_as_rows", "rows_as_frames"),
        ("pixels_as_rows", "rows_as_pixels"),
    ],
)
def test_they_follow_their_patterns_and_lead_back(name, back):
    x = torch.randn(2, 6, 3, 4, 5)
    fold, unfold = getattr(folds, name), getattr(folds, back)
    [pattern] = [words for words in fold.__doc__.split("`") if "->" in words]
    assert torch.equal(fold(x), rearrange(x, pattern))
    [pattern] = [words for words in unfold.__doc__.split("`") if "->" in words]
    sizes = {"b": 2} if back == "images_as_frames" else {"b": 2, "h": 4}
    assert torch.equal(unfold(fold(x), **sizes), x)
    assert torch.equal(unfold(fold(x), **sizes), rearrange(fold(x), pattern, **sizes))


def test_channels_last_videos_are_not_copied():
    x = torch.randn(2, 6, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    for fold in (folds.frames_as_images, folds.frames_as_rows):
        assert fold(x).data_ptr() == x.data_ptr()
