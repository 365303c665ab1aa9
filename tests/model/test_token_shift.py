"""Channels of the neighbours: which come from where, and where nothing comes from."""

import torch

from video_diffusion_pytorch.model.attention import shift_in_space, shift_in_time


def test_quarters_of_the_channels_come_from_the_frames_beside():
    x = torch.randn(2, 5, 9)
    shifted = shift_in_time(x)
    assert torch.equal(shifted[:, 1:, :2], x[:, :-1, :2])
    assert torch.equal(shifted[:, :-1, 2:4], x[:, 1:, 2:4])
    assert torch.equal(shifted[:, :, 4:], x[:, :, 4:])
    assert not shifted[:, 0, :2].any()
    assert not shifted[:, -1, 2:4].any()


def test_eighths_of_the_channels_come_from_the_pixels_around():
    x = torch.randn(2, 17, 3, 4, 5)
    above, below, left, right, kept = shift_in_space(x).split((2, 2, 2, 2, 9), dim=1)
    assert torch.equal(above[..., 1:, :], x[:, :2, :, :-1])
    assert torch.equal(below[..., :-1, :], x[:, 2:4, :, 1:])
    assert torch.equal(left[..., 1:], x[:, 4:6, :, :, :-1])
    assert torch.equal(right[..., :-1], x[:, 6:8, :, :, 1:])
    assert torch.equal(kept, x[:, 8:])
    edges = (above[..., 0, :], below[..., -1, :], left[..., 0], right[..., -1])
    assert not any(edge.any() for edge in edges)


def test_nothing_comes_from_images_or_to_focused_frames():
    x = torch.randn(2, 6, 8)
    shifted = shift_in_time(x, torch.tensor([False, True]), image_frames=2)
    assert torch.equal(shifted[0, :4], shift_in_time(x[:1, :4])[0])
    alone = torch.cat([shift_in_time(frame) for frame in x.split(1, dim=1)], dim=1)
    assert torch.equal(shifted[0, 4:], alone[0, 4:])
    assert torch.equal(shifted[1], alone[1])


def test_a_single_frame_and_a_single_pixel_have_no_neighbours():
    assert not shift_in_time(torch.ones(1, 1, 8))[..., :4].any()
    assert not shift_in_space(torch.ones(1, 8, 1, 1, 1))[:, :4].any()


def test_few_channels_are_left_as_they_are():
    x = torch.randn(1, 4, 3)
    assert torch.equal(shift_in_time(x), x)
