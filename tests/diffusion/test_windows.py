"""Completion window by window: the plan, and what `sample` is called with for each window."""

import re
from itertools import product

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, text
from video_diffusion_pytorch.diffusion.completion import (
    LowResolution,
    Window,
    shrink,
    windows,
)
from video_diffusion_pytorch.diffusion.conditioning import show_first_frames
from video_diffusion_pytorch.diffusion.guidance import Guidance, KnownRegion, Measurement


def every(factor, num_frames):
    return [frame % factor == 0 for frame in range(num_frames)]


def first(count, num_frames):
    return [frame < count for frame in range(num_frames)]


def spans(plan):
    return [(window.start, window.stop) for window in plan]


def test_a_short_video_is_one_window():
    for known in (first(2, 8), first(0, 8), every(3, 8)):
        assert spans(windows(known, known, length=8, overlap=4)) == [(0, 8)]
        assert spans(windows(known, known, length=16, overlap=4)) == [(0, 8)]


def test_windows_continue_known_frames():
    known = first(20, 40)
    plan = windows(known, known, length=16, overlap=4)
    assert spans(plan) == [(16, 32), (24, 40)]  # the last overlaps more
    assert [window.ready for window in plan] == [4, 8]
    assert [window.keep for window in plan] == [32, 40]
    # a beginning shorter than the overlap is all there is
    assert windows(first(2, 40), first(2, 40), 16, 8)[0] == Window(0, 16, 2, 16)


def test_known_frames_are_skipped():
    known = [True] * 40
    assert windows(known, known, length=8, overlap=4) == []
    known[3] = known[30] = False
    assert spans(windows(known, known, length=8, overlap=4)) == [(0, 8), (26, 34)]
    assert windows([], [], length=8, overlap=4) == []


def test_frames_between_known_ones_are_drawn_with_both():
    # the first window ends three frames behind a known one, which the next draws again
    plan = windows(every(4, 41), every(4, 41), length=16, overlap=8)
    assert plan[:3] == [Window(0, 16, 1, 13), Window(5, 21, 8, 21), Window(13, 29, 8, 29)]
    assert plan[-1].keep == 41
    # where the next window does not get as far, nothing is drawn twice
    assert windows(every(12, 49), every(12, 49), length=16, overlap=8)[0].keep == 16
    # nor where a frame is partly known and partly drawn
    assert windows(first(0, 40), [True] * 40, length=16, overlap=8)[0].keep == 16


@pytest.mark.parametrize("length", [2, 5, 16])
def test_all_frames_are_drawn_in_order(length):
    cases = [
        (list(known), list(partly), overlap)
        for num_frames in (1, 4, 7, 33)
        for known, partly, overlap in product(
            (every(2, num_frames), every(5, num_frames), first(3, num_frames)),
            (every(3, num_frames), [True] * num_frames, [False] * num_frames),
            range(1, length),
        )
    ]
    for known, partly, overlap in cases:
        partly = [a or b for a, b in zip(known, partly, strict=True)]
        there = list(known)
        for window in windows(known, partly, length, overlap):
            # continues all before it, is full if it can be, and draws something
            assert all(there[: window.start + window.ready])
            assert not there[window.start + window.ready]
            assert window.stop - window.start == min(length, len(known))
            assert window.ready >= min(overlap, there.index(False))
            assert window.start + window.ready < window.keep <= window.stop
            there[window.start : window.keep] = [True] * (window.keep - window.start)
        assert all(there)


class Recorder(nn.Module):
    """Records its arguments; predicts noise of zero."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward_with_cond_scale(self, x, t, **conditions):
        self.calls.append({"x": x.detach(), "t": t, **conditions})
        return 0 * x


class Watched(GaussianDiffusion):
    """Records its arguments for each window, and those of the network in the first step."""

    def sample(self, *, guidance=(), **options):
        regions = [one for one in guidance if isinstance(one, KnownRegion)]
        self.known.extend((one.video.clone(), one.mask.clone()) for one in regions)
        self.denoise_fn.calls.clear()
        drawn = super().sample(guidance=guidance, **options)
        self.asked.append({"guidance": guidance, **options})
        self.received.append(self.denoise_fn.calls[0])
        return drawn


def watched(**config):
    config = {"image_size": 4, "num_frames": 4, "timesteps": 3, "channels": 1} | config
    diffusion = Watched(Recorder(), **config)
    diffusion.known, diffusion.asked, diffusion.received = [], [], []
    return diffusion


def exactly(message):
    return f"^{re.escape(message)}$"


VIDEO = torch.rand(2, 1, 3, 4, 4)
# 8 frames from 3, 2 of 4 known
SPANS = [(1, 5), (3, 7), (4, 8)]
QUIET = {"progress": False, "weight": 0}


# Windows


class Spy(Guidance):
    """Records the noisy videos."""

    def __init__(self):
        self.seen = []

    def replace(self, x_t, level, noise):
        self.seen.append((x_t, level))
        return x_t


def test_each_window_continues_those_before():
    diffusion = watched()
    result = diffusion.extend(VIDEO, 8, weight=1.5, progress=False)
    assert len(diffusion.asked) == 3
    calls = zip(SPANS, [2, 2, 3], diffusion.asked, diffusion.known, strict=True)
    for (start, stop), ready, options, (video, mask) in calls:
        assert options["num_frames"] == stop - start
        assert options["batch_size"] == 2
        assert [one.weight for one in options["guidance"]] == [1.5]
        assert mask.flatten().tolist() == [True] * ready + [False] * (4 - ready)
        assert torch.equal(video[:, :, :ready], result[:, :, start : start + ready])


def test_windows_know_parts_of_frames_and_drawn_frames():
    diffusion = watched()
    mask = torch.zeros(1, 1, 7, 4, 4, dtype=torch.bool)
    mask[..., 0] = True  # the first column of every frame, and all of the last
    mask[:, :, 6] = True
    diffusion.inpaint(torch.rand(2, 1, 7, 4, 4), mask, **QUIET)
    first, second = (known for _, known in diffusion.known)
    assert torch.equal(first, mask[:, :, :4])
    expected = mask[:, :, 2:6].clone()
    expected[:, :, :2] = True
    assert torch.equal(second, expected)


def test_windows_without_known_values_have_no_region():
    diffusion = watched()
    diffusion.inpaint(VIDEO, torch.tensor([False] * 3), **QUIET)
    assert diffusion.asked[0]["guidance"] == []
    low = torch.rand(2, 1, 4, 2, 2)
    diffusion.upsample(low, progress=False)
    assert [type(one) for one in diffusion.asked[1]["guidance"]] == [Measurement]


def test_frames_after_the_last_known_one_are_drawn_again():
    # windows of 6 of which the first ends between two given frames
    diffusion = watched(num_frames=6)
    result = diffusion.interpolate_frames(VIDEO, 4, **QUIET)
    assert result.shape[2] == 9
    masks = [mask.flatten().tolist() for _, mask in diffusion.known]
    assert masks == [[True, False, False, False, True, False], [True] * 2 + [False] * 3 + [True]]
    assert torch.equal(result[:, :, ::4], VIDEO)


def test_a_video_shorter_than_a_window():
    diffusion = watched(num_frames=16)
    assert diffusion.extend(VIDEO, 5, **QUIET).shape[2] == 5
    assert diffusion.asked[0]["num_frames"] == 5
    # clips of one frame have no overlap, and need none
    single = watched(num_frames=1)
    assert single.inpaint(VIDEO[:, :, :1], torch.eye(4, dtype=torch.bool), **QUIET).shape[2] == 1


def test_custom_guidance_guides_each_window():
    for given in (Spy(), [Spy(), Spy()]):
        diffusion = watched()
        diffusion.extend(VIDEO, 8, guidance=given, **QUIET)
        for spy in [given] if isinstance(given, Spy) else given:
            assert len(spy.seen) == 3 * 3
            assert {len(x) for x, _ in spy.seen} == {2}


# Low resolution


def test_the_measurement_of_a_low_resolution():
    low = LowResolution(torch.rand(2, 1, 5, 2, 2), frame_factor=3, weight=4.0)  # frames 0 to 12
    for window, frames in {
        (0, 4): [0, 3],
        (1, 5): [3],
        (3, 7): [3, 6],
        (9, 13): [9, 12],
        (4, 6): [],
    }.items():
        measured = low.measurement(Window(*window, 0, window[1]))
        if not frames:
            assert measured is None
            continue
        assert torch.equal(measured.y, low.video[:, :, [frame // 3 for frame in frames]])
        assert measured.weight == 4.0
        clip = torch.rand(2, 1, window[1] - window[0], 4, 4)
        picked = clip[:, :, [frame - window[0] for frame in frames]]
        torch.testing.assert_close(measured.operator(clip), shrink(picked, (2, 2)))


def test_shrinking_takes_means():
    # the middle of a plane is as it was, and what alternates vanishes
    plane = torch.linspace(0, 1, 16).view(1, 1, 1, 1, 16).expand(1, 1, 2, 16, 16)
    small = shrink(plane, (4, 4))
    middle = plane.reshape(1, 1, 2, 16, 4, 4).mean(dim=-1)[..., ::4, :]
    torch.testing.assert_close(small[..., 1:3], middle[..., 1:3], rtol=1e-3, atol=1e-3)
    stripes = torch.tensor([0.0, 1.0] * 8).expand(1, 1, 2, 16, 16)
    torch.testing.assert_close(shrink(stripes, (8, 8))[..., 1:-1], torch.full((1, 1, 2, 8, 6), 0.5))


def test_windows_without_low_resolution_frames_continue_those_before():
    # of frames 0 and 6, the second window has neither
    diffusion = watched()
    low = torch.rand(2, 1, 2, 2, 2)
    result = diffusion.upsample(low, frame_factor=6, overlap=2, progress=False)
    kinds = [[type(one) for one in options["guidance"]] for options in diffusion.asked]
    assert result.shape[2] == 7
    assert kinds == [[Measurement], [KnownRegion], [KnownRegion, Measurement]]


def test_frames_after_the_last_measured_one_are_drawn_again():
    # of the first four frames the last is drawn with the fifth, which is measured
    diffusion = watched()
    result = diffusion.upsample(torch.rand(2, 1, 4, 2, 2), frame_factor=2, progress=False)
    starts = [1, 3]
    for start, (video, mask) in zip(starts, diffusion.known, strict=True):
        assert mask.flatten().tolist() == [True, True, False, False]
        assert torch.equal(video[:, :, :2], result[:, :, start : start + 2])


@pytest.mark.parametrize(("size", "pixels"), [((2, 2), 4), ((1, 2), 8), ((4, 4), 1)])
def test_a_small_pixel_has_the_weight_of_those_it_averages(size, pixels):
    diffusion = watched()
    low = torch.rand(2, 1, 8, *size)
    diffusion.extend(VIDEO, 8, low_resolution=low, weight=1.5, progress=False)
    for options in diffusion.asked:
        assert [one.weight for one in options["guidance"]] == [1.5, 1.5 * pixels]


# Conditions


def test_each_window_gets_its_part_of_the_conditions():
    diffusion = watched()
    conditions = {
        "cond": torch.randn(2, 5),
        "labels": torch.tensor([3, -1]),
        "frame_cond": torch.randn(2, 8, 6),
        "cond_video": torch.randn(2, 3, 8, 4, 4),
        "null_cond_mask": torch.tensor([True, False]),
    }
    diffusion.extend(VIDEO, 8, **conditions, cond_scale=2.0, **QUIET)
    for (start, stop), received in zip(SPANS, diffusion.received, strict=True):
        for name in ("cond", "labels", "null_cond_mask"):
            assert torch.equal(received[name], conditions[name])
        assert torch.equal(received["frame_cond"], conditions["frame_cond"][:, start:stop])
        assert torch.equal(received["cond_video"], conditions["cond_video"][:, :, start:stop])
        assert received["cond_scale"] == 2.0


def test_a_field_for_all_frames_is_not_cut():
    diffusion = watched()
    field = torch.randn(2, 3, 4, 4)
    diffusion.extend(VIDEO, 8, cond_video=field, **QUIET)
    assert all(torch.equal(received["cond_video"], field) for received in diffusion.received)


def test_negative_conditions_are_cut():
    diffusion = watched()
    conditions = {"cond": torch.randn(2, 5), "frame_cond": torch.randn(2, 8, 6)}
    negative = {"cond": torch.randn(1, 5), "frame_cond": torch.randn(1, 8, 6)}
    diffusion.extend(VIDEO, 8, **conditions, negative_cond=negative, cond_scale=3, **QUIET)
    for (start, stop), received in zip(SPANS, diffusion.received, strict=True):
        away = received["negative"]
        assert torch.equal(away["cond"], negative["cond"].expand(2, -1))
        frames = negative["frame_cond"][:, start:stop]
        assert torch.equal(away["frame_cond"], frames.expand(2, -1, -1))


def test_captions_are_encoded_once():
    calls = []

    def encode(captions):
        calls.append(captions)
        return torch.tensor([[float(len(caption)), 1.0] for caption in captions])

    text.set_text_encoder(encode)
    try:
        diffusion = watched()
        diffusion.extend(VIDEO, 8, cond=["a", None], negative_cond=["bad"], cond_scale=2.0, **QUIET)
    finally:
        text.set_text_encoder()
    assert calls == [["a", ""], ["bad"]]
    for received in diffusion.received:
        assert received["cond"][0].tolist() == [1.0, 1.0]
        assert received["null_cond_mask"].tolist() == [False, True]
        assert received["negative"]["cond"].tolist() == [[3.0, 1.0]] * 2


def test_captions_to_guide_away_from_may_be_missing():
    text.set_text_encoder(lambda captions: torch.tensor([[float(len(c)), 1.0] for c in captions]))
    try:
        diffusion = watched()
        options = {"negative_cond": ["bad", None], "cond_scale": 2.0, **QUIET}
        diffusion.extend(VIDEO, 8, cond=["aa", None], **options)
    finally:
        text.set_text_encoder()
    assert len(diffusion.received) == 3
    for received in diffusion.received:
        assert received["cond"][0].tolist() == [2.0, 1.0]
        assert received["null_cond_mask"].tolist() == [False, True]
        assert received["negative"]["cond"][0].tolist() == [3.0, 1.0]
        assert received["negative"]["null_cond_mask"].tolist() == [False, True]


def test_a_model_with_given_frames_gets_those_of_each_window():
    diffusion = watched(given_frames=2, value_range=(0, 2))
    result = diffusion.extend(VIDEO, 8, **QUIET)
    for (start, stop), received in zip(SPANS, diffusion.received, strict=True):
        expected = show_first_frames(result[:, :, start : start + 2] - 1, stop - start)
        torch.testing.assert_close(received["cond_video"], expected)


# Randomness


@pytest.mark.parametrize("seed", [5, [5, 6]])
def test_streams_continue_from_window_to_window(seed):
    diffusion = watched()
    options = {"sampler": "ddim", "seed": seed, **QUIET}
    first = diffusion.extend(VIDEO, 8, **options)
    starts = [received["x"][:, :, 3] for received in diffusion.received]
    assert not any(torch.equal(starts[0], start) for start in starts[1:])
    assert torch.equal(diffusion.extend(VIDEO, 8, **options), first)
    # the first window is what it would be alone
    again = watched()
    again.extend(VIDEO, 5, **options)
    assert torch.equal(again.received[0]["x"], diffusion.received[0]["x"])


def test_generators_continue():
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    states = [generator.get_state() for generator in generators]
    diffusion = watched()
    first = diffusion.extend(VIDEO, 8, generator=generators, **QUIET)
    assert all(
        not torch.equal(generator.get_state(), state)
        for generator, state in zip(generators, states, strict=True)
    )
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    assert torch.equal(diffusion.extend(VIDEO, 8, generator=generators, **QUIET), first)


def test_without_a_seed_the_global_stream_is_used():
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(watched().extend(VIDEO, 8, **QUIET))
    assert torch.equal(*results)


# What is passed on


def test_options_of_sampling_reach_each_window():
    steps = []
    diffusion = watched(timesteps=10)
    diffusion.extend(VIDEO, 8, sampler="ddim", steps=2, max_batch=1, callback=steps.append, **QUIET)
    assert len(steps) == 3 * 2 * 2
    assert all(len(received["x"]) == 1 for received in diffusion.received)


def test_an_unknown_keyword_is_refused():
    diffusion = GaussianDiffusion(Recorder(), image_size=4, num_frames=4, timesteps=3, channels=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        diffusion.extend(VIDEO, 8, step=3, **QUIET)
    assert diffusion.denoise_fn.calls == []


def test_guidance_of_another_type():
    with pytest.raises(TypeError, match=r"guidance must be a Guidance.*, got 3; "):
        watched().extend(VIDEO, 8, guidance=3, **QUIET)


def test_a_model_that_has_diverged():
    class Diverged(Watched):
        def sample(self, **options):
            drawn = super().sample(**options)
            return drawn.index_fill(2, torch.tensor([3]), torch.nan)

    diffusion = watched()
    diffusion.__class__ = Diverged
    with pytest.raises(ValueError, match=r"known values must be finite.* if the model has drawn"):
        diffusion.extend(VIDEO, 8, **QUIET)
    # frames that no window needs are returned as sample gives them
    assert diffusion.extend(VIDEO[:, :, :1], 4, **QUIET)[:, :, 3].isnan().all()


# Mistakes


@pytest.mark.parametrize("overlap", [4, 9])
def test_overlaps_outside_their_range(overlap):
    message = (
        "extend: overlap must be from 1 to 3, one less than the frames of the model's clips, got "
        f"{overlap}; leave it out for half of them"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        watched().extend(VIDEO, 8, overlap=overlap)


def test_clips_of_one_frame_cannot_be_extended():
    with pytest.raises(ValueError, match="extend: overlap must be from 1 to 0, one less"):
        watched(num_frames=1).extend(VIDEO, 8)


@pytest.mark.parametrize(("known", "overlap", "ready", "start"), [(1, 3, 1, 0), (3, 1, 1, 2)])
def test_too_few_frames_for_a_model_with_given_frames(known, overlap, ready, start):
    message = (
        "extend: each window must begin with the 2 known frames that a model with given_frames "
        f"needs, got {ready} at frame {start}; give more frames at the beginning, or a greater "
        "overlap"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        watched(given_frames=2).extend(VIDEO[:, :, :known], 8, overlap=overlap)


@pytest.mark.parametrize("name", ["batch_size", "num_frames", "first_frames"])
def test_options_that_follow_from_the_video(name):
    diffusion = watched(given_frames=1)
    message = f"inpaint: {name} must be that of the given video, from which it is taken; leave it"
    with pytest.raises(ValueError, match=message):
        diffusion.inpaint(VIDEO, torch.tensor([True, False, True]), **{name: VIDEO})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("frame_cond", (2, 4, 6)),
        ("cond_video", (2, 3, 4, 4, 4)),
        ("labels", (1,)),
        ("labels", (3,)),
    ],
)
def test_conditions_of_other_videos_or_frames(name, shape):
    message = (
        f"extend: {name} must have one row per video, 2, and, if it has frames, all 8 of the "
        f"result, which are cut for each window, got {shape}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        watched().extend(VIDEO, 8, **{name: torch.randn(shape)})
    if shape[0] == 2:
        options = {"cond_scale": 2, "negative_cond": {name: torch.randn(shape)}}
        with pytest.raises(ValueError, match=exactly(message)):
            watched().extend(VIDEO, 8, cond=torch.randn(2, 5), **options)


def test_a_low_resolution_of_other_videos():
    message = "must have one row per video, 2, or one for all, got 3"
    with pytest.raises(ValueError, match=message):
        watched().extend(VIDEO, 8, low_resolution=torch.rand(3, 1, 8, 2, 2))
