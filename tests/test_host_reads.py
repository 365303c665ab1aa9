"""How often the host looks at a tensor's values, for which a GPU must first finish its work.

Tensors are on the CPU, but say that they are not, so that the library does as on a GPU.
"""

import traceback
from functools import partial
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, text
from video_diffusion_pytorch.diffusion.diffusers_scheduler import DiffusersScheduler
from video_diffusion_pytorch.diffusion.guidance import KnownRegion
from video_diffusion_pytorch.diffusion.samplers import SAMPLERS, Heun

LOOKS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__, Tensor.__format__),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
    *(torch.equal, Tensor.equal, torch.allclose, Tensor.allclose, torch.is_nonzero),
    *(torch.nonzero, Tensor.nonzero, torch.masked_select, Tensor.masked_select, torch.unique),
}
SHAPE = (2, 1, 4, 8, 8)


class HostReads(TorchFunctionMode):
    """Notes where the host looks at values."""

    def __init__(self):
        super().__init__()
        self.places = []
        self.shapes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.is_cpu.__get__:
            return False
        if func in LOOKS or (func is Tensor.__getitem__ and has_mask(args[1])):
            caller = traceback.extract_stack(limit=2)[0]
            self.places.append(f"{func.__name__} in {caller.filename}:{caller.lineno}")
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def has_mask(index):
    """Whether the number of elements of `tensor[index]` depends on values."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


def tiny(timesteps=6, min_snr_gamma=5, objective="pred_noise", frame_noise=None, **network):
    unet = Unet3D(8, dim_mults=(1,), channels=1, attn_heads=2, blocks_per_level=1, **network)
    settings = {
        "timesteps": timesteps,
        "min_snr_gamma": min_snr_gamma,
        "objective": objective,
        "frame_noise": frame_noise,
        "given_frames": 1 if "cond_channels" in network else 0,
    }
    return GaussianDiffusion(unet, image_size=8, num_frames=4, **settings)


@pytest.mark.parametrize(
    "look",
    [
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, bool, int, float, "{:.1f}".format),
        range(9).__getitem__,
        partial(torch.equal, torch.ones(())),
        lambda x: x.view(1)[x.view(1) > 0],
        lambda x: 1 in x.view(1),
    ],
)
def test_a_look_is_noticed(look):
    x = torch.ones((), dtype=torch.long)
    with HostReads() as reads:
        assert not x.is_cpu
        assert (x + x.view(1)[0]).shape == ()
        assert reads.places == []
        look(x)
    assert len(reads.places) == 1


# Training

CLASSES = {"num_classes": 3, "frame_cond_dim": 2, "cond_channels": 3}
CAPTIONS = {"cond_dim": 4, "num_text_tokens": 2, "text_pooling": "attention"}


def batch(**network):
    """A batch with conditions and images for a network."""
    b, _, f, h, w = SHAPE
    found = {"video": torch.rand(SHAPE), "images": torch.rand(b, 1, 2, h, w)}
    if "num_classes" in network:
        found |= {"labels": torch.tensor([0, -1]), "frame_cond": torch.rand(b, f, 2)}
        found |= {"cond_video": torch.rand(b, 1, f, h, w)}
        found["image_conditions"] = {"labels": torch.zeros(b, 2, dtype=torch.long)}
    if "cond_dim" in network:
        found["cond"] = ["a whale", None]
    return found


@pytest.fixture
def _short_states():
    """An encoder that gives captions states of 4 numbers."""
    text.set_text_encoder(lambda captions: torch.ones(len(captions), 3, 4))
    yield
    text.set_text_encoder()


@pytest.mark.usefixtures("_short_states")
@pytest.mark.parametrize(
    ("network", "options"),
    [
        (
            {},
            {"optimizer": "adamw", "weight_decay": 0.1, "lr_schedule": "cosine", "warmup_steps": 2},
        ),
        (
            CLASSES,
            {"gradient_accumulate_every": 3, "ema_decay": (0.9, 0.99), "ema_warmup": "power"},
        ),
        (CAPTIONS, {"amp": True, "max_grad_norm": 0.1}),
    ],
)
def test_a_training_step_looks_once(tmp_path, network, options):
    trainer = Trainer(
        tiny(**network),
        dataloader=[batch(**network)],
        results_folder=tmp_path,
        device="cpu",
        train_num_steps=6,
        num_sample_rows=1,
        **{"gradient_accumulate_every": 1, "update_ema_every": 1, "log_every": 3, **options},
    )
    looks = []
    with HostReads() as reads:
        trainer.train(0.5, log_fn=lambda log: looks.append(reads.places.copy()))
    each = [after[len(before) :] for before, after in pairwise(looks)]
    # in the first step the range of the clips is checked; every third one ends with a line
    steady = [places for step, places in enumerate(each, 2) if step % 3]
    assert [len(places) for places in steady] == [1, 1, 1], steady


class Transfers(TorchDispatchMode):
    """Notes for each copy to the meta device whether it blocks."""

    def __init__(self):
        super().__init__()
        self.are_blocking = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default
        if is_copy and result.is_meta and not args[0].is_meta:
            self.are_blocking.append(not kwargs.get("non_blocking", False))
        return result


@pytest.mark.usefixtures("_short_states")
@pytest.mark.parametrize("network", [CLASSES, CAPTIONS])
def test_batches_are_moved_without_blocking(tmp_path, network):
    data = {"dataloader": [batch(**network)], "results_folder": tmp_path, "device": "cpu"}
    trainer = Trainer(tiny(**network), **data)
    first = trainer.next_batch()
    trainer.processes.device = torch.device("meta")
    with Transfers() as transfers:
        moved = trainer.next_batch()
    assert moved.videos.is_meta
    assert moved.conditions.keys() == first.conditions.keys()
    assert all(value.is_meta for value in moved.conditions.values() if torch.is_tensor(value))
    assert len(transfers.are_blocking) > len(moved.conditions) - 1
    assert not any(transfers.are_blocking)


def test_loaders_for_a_gpu_pin_memory(tmp_path):
    items = [torch.rand(SHAPE[1:])] * 4
    options = {"results_folder": tmp_path, "num_workers": 0, "train_batch_size": 2}
    trainer = Trainer(tiny(), dataset=items, device="cpu", **options)
    for device, is_pinned in (("cpu", False), ("cuda", True)):
        trainer.device = torch.device(device)
        assert trainer.make_dataloader(items).pin_memory == is_pinned


# Sampling


def looks_of(sample, steps):
    with HostReads() as reads:
        # the range of given values is checked once
        sample(steps)
        reads.places.clear()
        sample(steps)
    return reads.places


@pytest.mark.parametrize("guides", [False, True])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ddpm"])
def test_a_sampling_step_does_not_look(sampler, guides):
    diffusion = tiny(**CLASSES)
    b, _, f, h, w = SHAPE
    options = {
        "labels": torch.tensor([0, 1]),
        "frame_cond": torch.rand(b, f, 2),
        "cond_video": torch.rand(b, 1, f, h, w),
        "first_frames": torch.rand(b, 1, 1, h, w),
        "guidance": KnownRegion(torch.rand(SHAPE), torch.tensor([True, False, False, False])),
        "cond_scale": 2.0,
        "dynamic_thres_percentile": 0.9,
        "seed": 0,
        "progress": False,
    }
    if guides:
        options["cond_scale"] = {"labels": 2.0, "first_frames": 1.5}
        options |= {"guide": tiny(timesteps=9, **CLASSES), "guidance_interval": (0.1, 5.0)}
    sample = partial(diffusion.sample, sampler=sampler, **options)
    few, many = (looks_of(lambda n: sample(steps=n), steps) for steps in (2, 5))
    assert few
    assert few == many


# what diffusers itself does with numpy
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.EDMDPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.DDIMScheduler(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_step_of_a_scheduler_looks_at_its_own_numbers_only(scheduler):
    """Which are on the CPU."""
    diffusion, sampler = tiny(), DiffusersScheduler(scheduler)
    counts = []
    for steps in (2, 5):
        levels = sampler.levels(diffusion, steps)
        assert {levels.scheduler.timesteps.device.type} == {"cpu"}
        sampler.levels = lambda *_, levels=levels: levels
        with HostReads() as reads:
            diffusion.sample(batch_size=2, seed=0, sampler=sampler, progress=False)
        del sampler.levels
        counts.append(sum(shape[:1] == SHAPE[:1] for shape in reads.shapes))
    # the seeds of its generators are fetched once, with cpu and numpy
    assert counts in ([0, 0], [2, 2])


def test_a_step_of_the_chain_does_not_look():
    options = {"batch_size": 2, "progress": False, "cond_scale": 2.0}
    few, many = (looks_of(lambda n: tiny(timesteps=n).sample(**options), steps) for steps in (3, 6))
    assert few == many


@pytest.mark.parametrize("frame_noise", [None, "independent"])
def test_steps_of_a_completion_do_not_look(frame_noise):
    diffusion = tiny(frame_noise=frame_noise)
    extend = partial(diffusion.extend, torch.rand(SHAPE), 8, sampler="ddim", progress=False)
    few, many = (looks_of(lambda n: extend(steps=n), steps) for steps in (2, 4))
    assert few == many


@pytest.mark.parametrize("objective", ["pred_noise", "flow", "edm"])
@pytest.mark.parametrize(
    "sampler", ["heun", "dpm++", Heun(churn=5)], ids=["heun", "dpm++", "churn"]
)
def test_steps_in_continuous_time_do_not_look(objective, sampler):
    diffusion = tiny(objective=objective, timesteps=50, min_snr_gamma=None)
    sample = partial(diffusion.sample, batch_size=2, sampler=sampler, progress=False)
    few, many = (looks_of(lambda n: sample(steps=n), steps) for steps in (2, 5))
    assert few == many


def test_steps_of_a_rollout_do_not_look():
    diffusion = tiny(frame_noise="independent", timesteps=20)
    roll_out = partial(diffusion.roll_out, torch.rand(SHAPE), 9, given_noise=0.1, progress=False)
    few, many = (looks_of(lambda n: roll_out(steps=n), steps) for steps in (2, 6))
    assert few == many
