"""What is random about a clip follows from its seed, and is spread as it should be."""

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.training.batches import ClipDraws

FRAMES = 2
CONTINUOUS = "continuous_cosine"


def make_diffusion(kind=GaussianDiffusion, cond_dim=None, **options):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, cond_dim=cond_dim)
    options = {"image_size": 4, "num_frames": FRAMES, "timesteps": 10, **options}
    return kind(unet, **options)


@pytest.fixture
def draws():
    return ClipDraws(make_diffusion())


def standard_normal(values, tolerance=5.0):
    """Whether mean and variance of many values are 0 and 1, within so many standard errors."""
    count = values.numel()
    mean, square = values.double().mean().item(), values.double().square().mean().item()
    return abs(mean) * count**0.5 < tolerance and abs(square - 1) * (count / 2) ** 0.5 < tolerance


# of what they are a function


@pytest.mark.parametrize("schedule", ["cosine", CONTINUOUS])
def test_a_clips_draws_follow_from_its_seed_alone(schedule):
    draws = ClipDraws(make_diffusion(cond_dim=3, beta_schedule=schedule, cond_drop_prob=0.5))
    seeds = [5, 0, 2**31 * 1_000_003 + 77, 1, 6, 7]
    together = draws(seeds, FRAMES, 0.5)
    assert together.keys() == {"t", "noise", "reduction", "drop_mask", "focus_present_mask"}
    torch.manual_seed(0)
    alone = [draws([seed], FRAMES, 0.5) for seed in reversed(seeds)][::-1]
    for name in ("t", "noise", "drop_mask", "focus_present_mask"):
        joined = torch.cat([drawn[name] for drawn in alone])
        assert torch.equal(together[name], joined)
        assert together[name].dtype == joined.dtype
        # of other seeds they differ
        assert len({str(row) for row in together[name].tolist()}) > 1


def test_nothing_is_drawn_from_the_global_generator(draws):
    before = torch.get_rng_state()
    draws([1, 2], FRAMES, 0.5)
    draws.fixed([1, 2], FRAMES)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_a_clip_have_other_noise(draws):
    drawn = draws([1, 2], FRAMES + 3)
    assert drawn["noise"].shape == (2, 1, FRAMES + 3, 4, 4)
    assert drawn["noise"].unique().numel() == drawn["noise"].numel()


# how they are spread


def test_time_steps_are_uniform():
    draws = ClipDraws(make_diffusion(image_size=4, num_frames=1))
    # neighbours, as the clips of a run are
    t = draws(range(7_000_021, 7_004_021), 1)["t"]
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert (counts - 400).abs().max() <= 2


@pytest.mark.parametrize("schedule", ["cosine", CONTINUOUS])
@pytest.mark.parametrize("count", [2, 4, 8, 13, 32])
def test_every_batch_covers_the_noise_levels_evenly(schedule, count):
    draws = ClipDraws(make_diffusion(beta_schedule=schedule, timesteps=1000))
    for first in (0, 1_000_003 * 7 + 5, 2**40 + 99):
        seeds = range(first, first + count)
        fractions = (draws(seeds, FRAMES)["t"].double() + 1) / 1000
        # each part of the interval has its share of the batch, up to about one clip
        for end in (0.25, 0.5, 0.75):
            assert abs((fractions <= end).sum().item() - end * count) < 2
        # also over processes, of which each has every second batch
        apart = fractions.sort()[0].diff()
        assert apart.max() < 2.7 / count


def test_a_run_of_an_earlier_version_keeps_independent_times(draws):
    draws.is_even = False
    t = draws(range(7_000_021, 7_004_021), FRAMES)["t"]
    counts = torch.bincount(t, minlength=10)
    # chi-squared with 9 degrees of freedom is below 33.7 but once in 10,000
    assert 2 < ((counts - 400.0).square() / 400).sum() < 33.7
    assert torch.equal(draws([7_000_030], FRAMES)["t"], t[9:10])


def test_times_follow_no_other_draw(draws):
    drawn = draws(range(4000), FRAMES)
    by_time = drawn["noise"].flatten(1).mean(1).double()
    assert abs(torch.corrcoef(torch.stack((drawn["t"].double(), by_time)))[0, 1]) < 0.08


@pytest.mark.parametrize("schedule", ["cosine", CONTINUOUS])
def test_a_noise_level_for_each_frame(schedule):
    options = {"frame_noise": "independent", "shared_noise_prob": 0.3, "beta_schedule": schedule}
    diffusion = make_diffusion(num_frames=3, timesteps=1000, **options)
    draws = ClipDraws(diffusion)
    t = draws(range(2000), 3)["t"]
    assert t.shape == (2000, 3)
    assert t.is_floating_point() == (schedule == CONTINUOUS)
    is_shared = (t == t[:, :1]).all(dim=1)
    assert abs(is_shared.double().mean().item() - 0.3) < 0.06
    for levels in (t[is_shared], t[~is_shared]):
        assert abs(levels.double().mean().item() / 999 - 0.5) < 0.03
    first, second, third = t[~is_shared].double().unbind(1)
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack((first, third)))[0, 1]) < 0.1
    # of a clip alone as in a batch
    assert torch.equal(draws([77], 3)["t"], t[77:78])
    # validation has one level per clip, as its losses are compared
    assert draws.fixed([1, 2], 3)["t"].shape == (2,)
    loss = diffusion(torch.rand(2, 1, 3, 4, 4), **draws([1, 2], 3))
    assert loss.shape == (2,)


def test_continuous_time_is_drawn_from_all_of_it():
    draws = ClipDraws(make_diffusion(beta_schedule=CONTINUOUS))
    t = draws(range(4000), FRAMES)["t"]
    assert t.dtype == torch.float32
    assert -1 <= t.min() < -0.98
    assert 8.98 < t.max() <= 9
    assert abs(((t + 1) / 10).mean().item() - 0.5) * (12 * 4000) ** 0.5 < 5
    assert (t % 1 != 0).float().mean() > 0.99


def test_noise_is_standard_normal_and_independent(draws):
    drawn = draws(range(2000), FRAMES)
    noise = drawn["noise"]
    assert noise.shape == (2000, 1, FRAMES, 4, 4)
    assert standard_normal(noise)
    # products of independent normals have mean 0 and variance 1, and are close to normal in sum
    rows = noise.flatten(1).double()
    for step in (1, 2, 1000):
        products = rows[:-step] * rows[step:]
        assert abs(products.mean().item()) * products.numel() ** 0.5 < 5
    # nor does it depend on the time step: at each one it is as at all
    for t in range(10):
        assert standard_normal(noise[drawn["t"] == t])
    with_time = rows.mean(1) * (drawn["t"] - 4.5)
    assert abs(with_time.mean().item() / with_time.std().item()) * 2000**0.5 < 5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_many_conditions_are_dropped_and_clips_focused(share):
    draws = ClipDraws(make_diffusion(cond_dim=3, cond_drop_prob=share))
    drawn = draws(range(3000), FRAMES, 0.5)
    for name, wanted in (("drop_mask", share), ("focus_present_mask", 0.5)):
        mask = drawn[name]
        assert mask.dtype == torch.bool
        error = (wanted * (1 - wanted) / 3000) ** 0.5
        assert abs(mask.double().mean().item() - wanted) <= 5 * error
    both = (drawn["drop_mask"] & drawn["focus_present_mask"]).double().mean().item()
    assert abs(both - share / 2) < 5 * (0.25 / 3000) ** 0.5


def test_masks_are_given_only_where_there_is_something_to_mask(draws):
    # without conditions none is dropped, and nothing is focused unless it is asked for
    assert draws([1], FRAMES).keys() == {"t", "noise", "reduction"}
    conditional = ClipDraws(make_diffusion(cond_dim=3))
    assert conditional([1], FRAMES).keys() == {"t", "noise", "reduction", "drop_mask"}


class Plain(torch.nn.Module):
    """A network that takes no masks."""

    def forward(self, x, t, cond=None):
        return x


def test_a_network_that_takes_no_masks_is_given_none():
    diffusion = GaussianDiffusion(Plain(), image_size=4, num_frames=2, timesteps=10, channels=1)
    drawn = ClipDraws(diffusion)([1, 2], FRAMES, 0.5)
    assert drawn.keys() == {"t", "noise", "reduction"}
    assert diffusion(torch.rand(2, 1, 2, 4, 4), **drawn).shape == (2,)


@pytest.mark.parametrize("schedule", ["cosine", CONTINUOUS])
def test_the_loss_takes_them(schedule):
    diffusion = make_diffusion(cond_dim=3, beta_schedule=schedule)
    drawn = ClipDraws(diffusion)(range(40), FRAMES, 0.5)
    videos, cond = torch.rand(40, 1, FRAMES, 4, 4), torch.randn(40, 3)
    losses = diffusion(videos, cond=cond, **drawn)
    assert losses.shape == (40,)
    assert losses.isfinite().all()
    # what is drawn is used: the same once more, and others for other seeds
    assert torch.equal(losses, diffusion(videos, cond=cond, **drawn))
    other = ClipDraws(diffusion)(range(40, 80), FRAMES, 0.5)
    assert not torch.equal(losses, diffusion(videos, cond=cond, **other))


# models that draw for themselves


class OwnTimes(GaussianDiffusion):
    def draw_times(self, count, generator=None):
        return torch.zeros(count, dtype=torch.long)


class ForwardOfTheReference(GaussianDiffusion):
    def forward(self, x, *args, **kwargs):
        t = torch.zeros(len(x), dtype=torch.long)
        return self.p_losses(x * 2 - 1, t, *args, **kwargs)


class LossOfTheReference(GaussianDiffusion):
    def p_losses(self, x_start, t, cond=None, noise=None, **kwargs):
        return super().p_losses(x_start, t, cond=cond, noise=noise, **kwargs)


@pytest.mark.parametrize("kind", [OwnTimes, ForwardOfTheReference, LossOfTheReference])
def test_a_model_of_the_user_draws_for_itself(kind):
    diffusion = make_diffusion(kind)
    draws = ClipDraws(diffusion)
    assert not draws.is_supported
    assert draws([1, 2], FRAMES, 0.5) == {}
    assert draws.fixed([1, 2], FRAMES) == {}
    assert diffusion(torch.rand(2, 1, FRAMES, 4, 4)).ndim == 0


class OwnForward(GaussianDiffusion):
    def forward(self, x, *args, t=None, drop_mask=None, reduction="mean", **kwargs):
        told = {"t": t, "drop_mask": drop_mask, "reduction": reduction}
        return super().forward(x, *args, **told, **kwargs)


def test_a_subclass_that_takes_them_is_given_them():
    assert ClipDraws(make_diffusion(OwnForward))([1], FRAMES).keys() >= {"t", "noise"}


# for validation


@pytest.mark.parametrize("schedule", ["cosine", CONTINUOUS])
def test_fixed_draws_are_the_same_in_every_run(schedule):
    diffusion = make_diffusion(cond_dim=3, beta_schedule=schedule, cond_drop_prob=1.0)
    first = ClipDraws(diffusion).fixed(range(64), FRAMES)
    torch.manual_seed(9)
    again = ClipDraws(make_diffusion(cond_dim=3, beta_schedule=schedule)).fixed([63, 5], FRAMES)
    for name in ("t", "noise", "drop_mask"):
        assert torch.equal(first[name][[63, 5]], again[name])
    # no condition is dropped
    assert not first["drop_mask"].any()
    assert standard_normal(first["noise"])
    assert first["noise"].unique().numel() == first["noise"].numel()


@pytest.mark.parametrize("count", [10, 64, 100])
def test_fixed_time_steps_are_spread_evenly(draws, count):
    t = draws.fixed(range(count), FRAMES)["t"]
    counts = torch.bincount(t, minlength=10)
    # no more than one more or less than its share, and one for a range's ends
    assert (counts - count / 10).abs().max() < 2
    smooth = ClipDraws(make_diffusion(beta_schedule=CONTINUOUS)).fixed(range(count), FRAMES)["t"]
    assert smooth.min() > -1
    assert smooth.max() < 9
    gaps = smooth.sort().values.diff()
    assert gaps.max() < 3 * 10 / count
