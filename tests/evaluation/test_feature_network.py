"""Networks of the user's get videos as they want them, and must give a row for each."""

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.evaluation.feature_network import (
    FeatureNetwork,
    RandomFeatures,
    random_features,
)
from video_diffusion_pytorch.evaluation.video_scores import (
    frechet_distance,
    random_feature_statistics,
)


class Recorder(nn.Module):
    """Gives means over all axes but the first and that of the channels; keeps what it was given."""

    def __init__(self, axis=1):
        super().__init__()
        self.axis, self.weight = axis, nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.given = x
        others = [axis for axis in range(1, x.ndim) if axis != self.axis]
        return x.mean(dim=others) * self.weight


class Pair(nn.Module):
    def forward(self, x: torch.Tensor, twice: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Means(nn.Module):
    def forward(self, x: torch.Tensor, twice: bool = False) -> torch.Tensor:
        return x.mean(dim=[2, 3, 4]) * (2 if twice else 1)


def saved(module, path):
    with torch.jit.optimized_execution(False):
        torch.jit.script(module).save(str(path))
    return path


ignore_jit = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")


def test_grey_videos_are_repeated_scaled_and_brought_into_range():
    recorder = Recorder()
    network = FeatureNetwork(recorder, size=(12, 10), value_range=(-1, 1))
    videos = torch.rand(2, 1, 3, 6, 5)
    assert network(videos).shape == (2, 3)
    assert recorder.given.shape == (2, 3, 3, 12, 10)
    assert torch.equal(recorder.given[:, 0], recorder.given[:, 2])
    frames = nn.functional.interpolate(videos[:, 0], size=(12, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(recorder.given[:, 1], frames * 2 - 1)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic", "nearest"])
def test_filters_keep_what_is_constant_and_frames_apart(resize):
    recorder = Recorder()
    videos = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 8, 8) / 4
    FeatureNetwork(recorder, size=5, resize=resize, channels=None)(videos)
    torch.testing.assert_close(recorder.given[0, 0, :, 2, 3], torch.arange(4.0) / 4)


def test_a_range_for_each_channel():
    recorder = Recorder()
    low, high = (-1.0, 0.0, 2.0), (1.0, 1.0, 4.0)
    network = FeatureNetwork(recorder, value_range=(low, high))
    found = network(torch.full((1, 3, 2, 4, 4), 0.5))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.5, 3.0]]))


def test_other_orders_of_axes():
    recorder = Recorder(axis=4)
    found = FeatureNetwork(recorder, layout="bfhwc")(torch.rand(2, 3, 4, 6, 5))
    assert recorder.given.shape == (2, 4, 6, 5, 3)
    assert found.shape == (2, 3)


def test_a_network_of_pictures_sees_one_frame_at_a_time():
    recorder = Recorder()
    network = FeatureNetwork(recorder, layout="bchw")
    videos = torch.rand(2, 3, 4, 6, 5)
    found = network(videos)
    assert network.is_of_frames
    assert recorder.given.shape == (8, 3, 6, 5)
    torch.testing.assert_close(found, videos.mean((3, 4)).movedim(2, 1))


@ignore_jit
def test_a_file(tmp_path):
    file = saved(Means(), tmp_path / "means.pt")
    network = FeatureNetwork(file, arguments={"twice": True})
    videos = torch.rand(2, 3, 2, 4, 4)
    torch.testing.assert_close(network(videos), 2 * videos.mean((2, 3, 4)))
    assert len(network.protocol["sha256"]) == 64
    assert network.protocol["sha256"] == FeatureNetwork(file).protocol["sha256"]
    assert network.protocol["arguments"] == {"twice": True}


def test_weights_tell_networks_apart():
    one, same, other = Recorder(), Recorder(), Recorder()
    nn.init.zeros_(other.weight)
    hashes = [FeatureNetwork(network).protocol["sha256"] for network in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_random_features_say_what_they_are():
    network = random_features(channels=2)
    assert "random 3-D convolutions, untrained" in network.protocol["name"]
    assert network(torch.rand(3, 2, 4, 8, 8)).shape == (3, 64)
    assert network.to("cpu") is network


def test_invalid_arguments(tmp_path):
    def network(**options):
        return FeatureNetwork(Recorder(), **options)

    with pytest.raises(ValueError, match=r"resize must be one of bilinear, bicubic, nearest, got"):
        network(resize="area")
    with pytest.raises(ValueError, match=r"layout must have the letters of 'bcfhw'.*got 'bcthw'"):
        network(layout="bcthw")
    with pytest.raises(ValueError, match=r"size must be a whole number of pixels .* got \(1, 2, 3"):
        network(size=(1, 2, 3))
    with pytest.raises(ValueError, match=r"one for each of 3 channels, got \(0, \(1, 2\)\)"):
        network(value_range=(0, (1, 2)))
    with pytest.raises(ValueError, match=r"a function must have a name.*got none; pass for ex"):
        FeatureNetwork(lambda x: x)
    with pytest.raises(FileNotFoundError, match=r"expected a TorchScript file at .*none.pt, found"):
        FeatureNetwork(tmp_path / "none.pt")
    torch.save({"weights": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt must be a TorchScript file, got one that"):
        FeatureNetwork(tmp_path / "weights.pt")


@ignore_jit
def test_invalid_outputs_of_networks(tmp_path):
    pair = FeatureNetwork(saved(Pair(), tmp_path / "pair.pt"))
    with pytest.raises(ValueError, match=r"a tensor with a row for each of 2, got tuple; wrap it"):
        pair(torch.rand(2, 3, 2, 4, 4))
    unknown = FeatureNetwork(tmp_path / "pair.pt", arguments={"thrice": True})
    with pytest.raises(ValueError, match=r"must take videos of shape \(2, 3, 2, 4, 4\).*thrice"):
        unknown(torch.rand(2, 3, 2, 4, 4))
    maps = FeatureNetwork(lambda x: x, name="maps")
    with pytest.raises(
        ValueError, match=r"a tensor with a row for each of 2, got the shape \(2, 3,"
    ):
        maps(torch.rand(2, 3, 2, 4, 4))
    for videos in (torch.rand(3, 2, 4, 4), torch.ones(2, 3, 2, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"floating-point, \(b, c, f, h, w\) in \[0, 1\], got"):
            FeatureNetwork(torch.nn.Flatten())(videos)
    with pytest.raises(ValueError, match=r"must have the 3 channels of the network, or 1, got 2;"):
        maps(torch.rand(2, 2, 2, 4, 4))
    with pytest.raises(
        ValueError, match=r"features must be finite, got NaN or infinite ones; look"
    ):
        FeatureNetwork(Recorder())(torch.full((2, 3, 2, 4, 4), torch.nan))
    ends = FeatureNetwork(lambda x: x.mean((2, 3, 4), keepdim=True), name="ends")
    assert ends(torch.rand(2, 3, 2, 4, 4)).shape == (2, 3)


def test_features_are_the_same_in_every_run_and_leave_the_random_state():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (RandomFeatures(3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    videos = torch.rand(2, 3, 4, 16, 16)
    assert torch.equal(first(videos), again(videos))
    assert not torch.allclose(first(videos), other(videos))


def test_brightness_is_not_seen_and_contrast_is():
    network = RandomFeatures(1)
    videos = torch.rand(1, 1, 6, 24, 24)
    inner = torch.nn.functional.pad(videos, (8, 8, 8, 8))
    assert not torch.allclose(network(inner), network(inner * 0.5))
    assert network(torch.zeros(1, 1, 6, 24, 24)).abs().max() == 0


def test_frozen_and_shuffled_clips_are_further_away_than_other_clips():
    digits, _ = load_digits()
    generator = torch.Generator().manual_seed(0)

    def clips(start):
        made = [moving_digit_clip(d, 6, 32, generator) for d in digits[start : start + 100]]
        return torch.stack(made).float() / 255

    real, others = clips(0), clips(100)
    frozen = others[:, :, :1].expand_as(others)
    shuffled = others[:, :, [3, 0, 5, 1, 4, 2]]
    floor = frechet_distance(random_feature_statistics(real), random_feature_statistics(others))
    assert (
        frechet_distance(random_feature_statistics(real), random_feature_statistics(frozen))
        > 2 * floor
    )
    assert (
        frechet_distance(random_feature_statistics(real), random_feature_statistics(shuffled))
        > 2 * floor
    )
