"""The model on a GPU that is not there: fake tensors on `cuda:0` have shapes and types, no values.

An operation that mixes devices raises, and so does a look at a value on the host.
"""

import warnings
from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.diffusion.guidance import KnownFrames, KnownRegion, Measurement
from video_diffusion_pytorch.diffusion.noise_schedule import SCHEDULES
from video_diffusion_pytorch.diffusion.samplers import SAMPLERS, make_sampler
from video_diffusion_pytorch.diffusion.sampling_steps import Sampler
from video_diffusion_pytorch.training.ema import Averages
from video_diffusion_pytorch.training.fsdp import clip_gradients
from video_diffusion_pytorch.training.metrics import StepMetrics
from video_diffusion_pytorch.training.optimizer import make_optimizer

FAKE = FakeTensorMode()
PRECISIONS = [None, torch.bfloat16, torch.float16]
SHAPE = (2, 1, 4, 8, 8)
B, _, F, H, W = SHAPE
K = 2  # images of a clip


class NoTransfers(TorchDispatchMode):
    """Fails at a copy between host and device, for which one of them may wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            assert source.device == result.device, f"copied from {source.device}"
        return result


@contextmanager
def autocast(dtype):
    """`torch.autocast("cuda", dtype)`, which without a GPU only warns."""
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def moved(value, device="cuda:0"):
    """The value with its tensors as fake ones on a device; a module's are replaced."""
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    if isinstance(value, torch.Tensor):
        with FAKE:
            fake = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=device
            )
        is_weight = isinstance(value, nn.Parameter)
        return nn.Parameter(fake, value.requires_grad) if is_weight else fake
    if isinstance(value, nn.Module):
        for part in value.modules():
            for own in (part._parameters, part._buffers):
                own.update({n: moved(v, device) for n, v in own.items() if v is not None})
    return value


def conditions(**network):
    """The conditions of a network of these keywords, and those of its images."""
    shapes = {}
    if "frame_cond_dim" in network:
        shapes |= {"frame_cond": (B, F, 2), "cond_video": (B, 2, F, H, W)}
    states = (3,) if {"num_text_tokens", "text_pooling"} & network.keys() else ()
    if "cond_dim" in network:
        shapes["cond"] = (B, *states, 6)
    own = {name: torch.rand(shape) for name, shape in shapes.items()}
    of_images = {
        "frame_cond": torch.rand(B, K, 2),
        "cond_video": torch.rand(B, 2, K, H, W),
        "cond": torch.rand(B, K, *states, 6),
        "labels": torch.zeros(B, K, dtype=torch.long),
        "cond_mask": torch.ones(B, K, 3, dtype=torch.bool),
    }
    if "num_classes" in network:
        own["labels"] = torch.tensor([0, -1])
    if "cond_dim" in network:
        own["null_cond_mask"] = torch.tensor([False, True])
        of_images["null_cond_mask"] = torch.ones(B, K, dtype=torch.bool)
    if states:
        own["cond_mask"] = torch.tensor([[True, True, False], [False, False, False]])
    return own, {name: value for name, value in of_images.items() if name in own}


EVERY_KIND = {"cond_dim": 6, "num_classes": 3, "frame_cond_dim": 2, "cond_channels": 4}
TOKENS = {"cond_dim": 6, "num_text_tokens": 2, "token_shift": "both"}
POOLED = {"cond_dim": 6, "text_pooling": "attention", "attn_heads": None}
PLAIN = {"resnet_groups": 4, "dropout": 0.1, "time_input": "log_snr"}
NETWORKS = {
    "every kind": (EVERY_KIND, {"given_frames": 1, "value_range": (0, 2), "min_snr_gamma": 5}),
    "tokens": (
        TOKENS | {"full_attn_levels": (0,), "temporal_attn_levels": ()},
        {"objective": "pred_v"},
    ),
    "pooled": (
        POOLED | {"attn_after_each_block": True, "gradient_checkpointing": True},
        {"beta_schedule": "continuous_cosine", "cond_value_range": (0, 1)},
    ),
    "plain": (PLAIN | {"dim_mults": (1, 2)}, {"auto_normalize": False, "loss_type": "huber"}),
    "levels": (
        EVERY_KIND,
        {"objective": "flow", "frame_noise": "independent", "min_snr_gamma": 5, "given_frames": 1},
    ),
    "edm": (PLAIN, {"objective": "edm", "time_distribution": (0.0, 1.0)}),
}


def tiny(network, **settings):
    """A diffusion on the CPU."""
    options = {"dim": 8, "dim_mults": (1,), "channels": 1, "attn_heads": 2, **network}
    sizes = {"image_size": (H, W), "num_frames": F, "timesteps": 20}
    return warned(GaussianDiffusion(Unet3D(blocks_per_level=1, **options), **sizes, **settings))


def warned(diffusion):
    """A diffusion that has found clips out of range: it looks at no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusion.to_model_range(torch.full(SHAPE, -1.0))
    return diffusion


def loss_options(network):
    """Keywords of the loss that use all that a network takes."""
    own, of_images = conditions(**network)
    own |= {"focus_present_mask": torch.tensor([True, False])}
    own["frame_mask"] = torch.tensor([[True, True, True, False], [True] * 4])
    if "resnet_groups" not in network:
        own |= {"images": torch.rand(B, 1, K, H, W), "image_conditions": of_images}
    return own


# The fake itself


@pytest.mark.parametrize("device", ["cuda:0", "meta"])
def test_a_fake_device_does_not_mix_with_the_cpu(device):
    x = moved(torch.rand(3), device)
    with FAKE, pytest.raises(RuntimeError, match="same device"):
        x + torch.rand(3)


@pytest.mark.parametrize("look", [torch.Tensor.item, bool, float, int, torch.Tensor.tolist])
def test_a_fake_device_shows_no_values(look):
    x = moved(torch.rand(()))
    with FAKE, pytest.raises(RuntimeError):
        look(x)


def test_transfers_are_noticed():
    with FAKE, NoTransfers():
        x = torch.rand(3, device="cuda:0")
        for transfer in (x.cpu, lambda: x.new_tensor([1.0]), lambda: x.copy_(torch.rand(3))):
            with pytest.raises(AssertionError, match="copied from"):
                transfer()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_autocast_casts_on_the_fake_device(dtype):
    with FAKE, autocast(dtype):
        x = torch.rand(4, 4, device="cuda:0")
        assert (x @ x).dtype == (dtype or torch.float32)
        assert torch.nn.functional.layer_norm(x @ x, (4,)).dtype == torch.float32


# Training


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_of_every_network_and_condition(name, dtype):
    network, settings = NETWORKS[name]
    diffusion = moved(tiny(network, **settings))
    clips, options = moved(torch.rand(SHAPE)), moved(loss_options(network))
    outputs = []
    diffusion.denoise_fn.register_forward_hook(lambda *call: outputs.append(call[2].dtype))
    with FAKE, NoTransfers(), autocast(dtype):
        loss = diffusion(clips, **options)
        assert outputs == [dtype or torch.float32]
        assert (loss.device.type, loss.shape) == ("cuda", ())
        assert loss.requires_grad


def test_losses_of_masks_that_are_drawn_and_of_bytes():
    diffusion = moved(tiny(EVERY_KIND | {"cond_channels": 2}, min_snr_gamma=5))
    options = moved(conditions(**EVERY_KIND)[0])
    clips, t = moved((torch.rand(SHAPE) * 255).byte()), moved(torch.tensor([0, 19]))
    with FAKE:
        metrics = StepMetrics("cuda:0", diffusion.num_timesteps)
        with NoTransfers():
            drawn = {"prob_focus_present": 0.5, "null_cond_prob": 0.5}
            each = diffusion(clips, t=t, reduction="none", **options, **drawn)
            assert each.shape == (B,)
            metrics.add_losses(each, t)


class Scale(nn.Module):
    """A denoiser of one weight."""

    channels = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, time, cond=None):
        return self.weight * x + time.view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("objective", "loss_type"), [("pred_noise", "l1"), ("pred_v", "l2"), ("pred_x_start", "huber")]
)
def test_losses_of_every_objective_and_schedule(objective, loss_type):
    kinds = [
        *product((objective,), SCHEDULES, (None, 5)),
        ("flow", "flow", 5),
        ("edm", "edm", None),
    ]
    for kind in kinds:
        settings = dict(zip(("objective", "beta_schedule", "min_snr_gamma"), kind, strict=True))
        sizes = {"image_size": 8, "num_frames": 4, "timesteps": 20}
        diffusion = GaussianDiffusion(Scale(), **sizes, **settings, loss_type=loss_type)
        moved(warned(diffusion))
        with FAKE, NoTransfers():
            loss = diffusion(torch.rand(SHAPE, device="cuda:0"))
            assert (loss.device.type, loss.shape) == ("cuda", ())


def test_more_rows_than_a_cuda_kernel_takes():
    # attention over time has a row for each pixel of each clip
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, cond_dim=6, num_text_tokens=2)
    diffusion = GaussianDiffusion(unet, image_size=256, num_frames=2, timesteps=20)
    moved(warned(diffusion))
    clips, states = moved(torch.empty(2, 1, 2, 256, 256)), moved(torch.rand(2, 3, 6))
    with FAKE, NoTransfers(), autocast(torch.bfloat16):
        assert diffusion(clips, states).shape == ()


# Sampling


class Prepared(Sampler):
    """A sampler whose noise levels are known: to make them is a look at the schedule.

    Args:
        name: The sampler.
        diffusion: On the CPU.
        steps: As in `levels`; the last three are made.
    """

    def __init__(self, name, diffusion, steps):
        super().__init__()
        inner = make_sampler(name)
        self.run = inner.run
        self.known = inner.levels(diffusion, steps)[-4:]

    def levels(self, process, steps):
        return self.known


def sampling_options(name, sampler, steps=(10.5, 3.0), device="cuda:0"):
    """A diffusion of `NETWORKS` on the device, and keywords of `sample`."""
    network, settings = NETWORKS[name]
    diffusion = tiny(network, **settings)
    own, _ = conditions(**network)
    if diffusion.given_frames:
        own["first_frames"] = torch.rand(B, 1, 1, H, W)
    options = {
        **moved(own, device),
        "sampler": Prepared(sampler, diffusion, steps),
        "batch_size": B,
        "progress": False,
        "cond_scale": 2.0,
        "guidance_rescale": 0.7,
    }
    if diffusion.auto_normalize:
        options["dynamic_thres_percentile"] = 0.9
    return diffusion, options


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler):
    diffusion, options = sampling_options("every kind", sampler, steps=20)
    negative = moved({"labels": torch.tensor([1, 1])})
    moved(diffusion)
    with FAKE, NoTransfers(), autocast(torch.float16):
        videos = diffusion.sample(**options, negative_cond=negative)
        assert (videos.device.type, videos.shape) == ("cuda", SHAPE)


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_of_every_network(name):
    diffusion, options = sampling_options(name, "dpm++sde")
    moved(diffusion)
    with FAKE, NoTransfers():
        assert diffusion.sample(**options).device.type == "cuda"


def test_frames_with_noise_levels_of_their_own():
    diffusion, options = sampling_options("levels", "dpm++", steps=20)
    known = KnownFrames(torch.rand(SHAPE), torch.tensor([True, False, False, True]), noise=0.1)
    ready = known.prepare(diffusion, SHAPE)
    vars(ready).update(moved(vars(ready)))
    ready.prepare = lambda *_: ready
    moved(diffusion)
    # levels of frames are copied in each step, a few numbers, for which nothing waits
    with FAKE:
        videos = diffusion.sample(**options, guidance=ready)
        assert (videos.device.type, videos.shape) == ("cuda", SHAPE)


@pytest.mark.parametrize("name", ["every kind", "tokens"])
def test_guidance_by_another_model_and_by_condition(name):
    diffusion, options = sampling_options(name, "dpm++sde")
    guide = tiny(NETWORKS[name][0], **NETWORKS[name][1] | {"objective": "pred_x_start"})
    # the schedule, which is looked at before the first step
    ends = diffusion.noise_levels([0, 19])
    known = {level.t: level for level in (*options["sampler"].known, *ends)}
    t_of = {level.log_snr: t for t, level in known.items()}
    for model in (diffusion, guide):
        model.noise_levels = lambda times: [known[t] for t in times]
        model.times_of = lambda log_snrs: [t_of[log_snr] for log_snr in log_snrs]
        moved(model)
    scales = {"cond": 2.0} | ({"first_frames": 3.0} if diffusion.given_frames else {})
    options |= {"guide": guide, "guidance_interval": (0.5, 100.0), "cond_scale": scales}
    rows = []
    guide.denoise_fn.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with FAKE, NoTransfers(), autocast(torch.bfloat16):
        videos = diffusion.sample(**options)
        assert (videos.device.type, videos.shape) == ("cuda", SHAPE)
    # the last level is below the interval
    assert rows == [B * (len(scales) + 1)]


def test_a_step_of_the_chain():
    diffusion, options = sampling_options("every kind", "ddim")
    own = {name: value for name, value in options.items() if torch.is_tensor(value)}
    moved(diffusion)
    x, t = moved(torch.rand(SHAPE)), moved(torch.tensor([0, 19]))
    with FAKE, NoTransfers():
        assert diffusion.p_sample(x, t, cond_scale=2.0, **own).device.type == "cuda"


# Gradients, for which torch needs a device that it has: fake tensors on `meta`


def test_guidance_by_what_is_known():
    diffusion, options = sampling_options("every kind", "ddim", device="meta")
    known = KnownRegion(torch.rand(SHAPE), torch.tensor([True, True, False, False]))
    mean = Measurement(torch.rand(B, 1, H, W), lambda videos: videos.mean(dim=2))
    ready = [one.prepare(diffusion, SHAPE) for one in (known, mean)]
    for one in ready:
        vars(one).update(moved(vars(one), "meta"))
        one.prepare = lambda *_, one=one: one
    moved(diffusion, "meta")
    with FAKE, NoTransfers():
        videos = diffusion.sample(**options, guidance=ready)
        assert (videos.device.type, videos.shape) == ("meta", SHAPE)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_training(name):
    network, settings = NETWORKS[name]
    diffusion = tiny(network, **settings)
    averages = Averages(diffusion, (0.9, 0.99), start=0)
    for model in (diffusion, *averages.models.values()):
        moved(model, "meta")
    optimizer = make_optimizer(diffusion, partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    clips, options = moved(torch.rand(SHAPE), "meta"), moved(loss_options(network), "meta")
    with FAKE, NoTransfers():
        diffusion(clips, **options).backward()
        assert clip_gradients(diffusion.parameters(), 1.0).shape == ()
        optimizer.step()
        averages.update(diffusion, step=0)
        averages.copy(diffusion)
