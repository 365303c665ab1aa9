"""Trains a model under JAX, on TPUs or on what else JAX finds.

    pip install "video-diffusion-pytorch[jax]"
    python examples/train_with_jax.py films --image_size 64 --num_frames 16 --steps 10000

The network and its loss are the library's own: torchax runs their torch operators as JAX's. All
devices share each batch. Clips, their order and what is drawn for them are the Trainer's for the
same seed, and what is written can be read by `load_diffusion` and by a Trainer.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from import_torchax import environment, interop
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from torch import Tensor, nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.training.batches import ClipDraws, Draw, EndlessShuffle, SeededItems
from video_diffusion_pytorch.training.checkpoint_file import write_checkpoint

Arrays = dict[str, jax.Array]


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        weights: The model's parameters by name, but for those that need no gradient.
        average: Their exponential moving average.
        optimizer: State of the optimizer.
    """

    weights: Arrays
    average: Arrays
    optimizer: optax.OptState


class DataParallel:
    """Where arrays are: each device has all weights, and its share of each batch.

    Args:
        devices: They share the work.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        mesh = Mesh(devices, ("clips",))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.shared = NamedSharding(mesh, PartitionSpec("clips"))

    def share(self, batch: dict[str, Tensor]) -> Arrays:
        """Gives each device its share of tensors that have one row per clip.

        Raises:
            ValueError: If the clips can't be divided evenly.
        """
        count, devices = len(batch["video"]), self.shared.num_devices
        if count % devices:
            raise ValueError(
                f"DataParallel: a batch must be a multiple of the {devices} devices, got {count} "
                "clips; change the batch, or use fewer devices"
            )
        return jax.device_put(environment.t2j_copy(batch), self.shared)

    def start(self, diffusion: nn.Module, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step, from the model's weights."""
        trained = {name: p for name, p in diffusion.named_parameters() if p.requires_grad}
        # copies: a step overwrites its state, and on a CPU the arrays may be torch's own memory
        weights = jax.tree.map(jnp.copy, environment.t2j_copy(trained))
        average = jax.tree.map(jnp.copy, weights)
        state = TrainState(weights, average, optimizer.init(weights))
        return jax.device_put(state, self.everywhere)


def make_loss(diffusion: nn.Module) -> Callable[[Arrays, Arrays], jax.Array]:
    """The training loss as a pure function of JAX, to be differentiated and compiled.

    Args:
        diffusion: A `GaussianDiffusion`. Its weights stay as they are.

    Returns:
        A function of the weights by name and of a batch: the clips are its `video`, its other
        entries are keywords of `GaussianDiffusion.forward`. All that is random must be among them:
        `t`, `noise` and, for a network with conditions, `drop_mask`. It raises a ValueError if
        the model draws anything itself.
    """
    constants = environment.to_xla(
        {
            **dict(diffusion.named_buffers()),
            **{name: p for name, p in diffusion.named_parameters() if not p.requires_grad},
        }
    )

    def loss(weights: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        conditions = {name: value for name, value in batch.items() if name != "video"}
        with environment.override_property():
            key = environment.prng_key
            mean = torch.func.functional_call(
                diffusion, (weights, constants), (batch["video"],), conditions
            )
            # a draw has taken the next key
            if environment.prng_key is not key:
                raise ValueError(
                    "make_loss: the batch must hold all that is random, t, noise and, with "
                    f"conditions, drop_mask, got {', '.join(batch)}, and a model that draws, which "
                    "once compiled would draw the same in each step; add what is missing, and "
                    "build the network without dropout"
                )
        return mean

    return interop.jax_view(loss)


def make_step(
    diffusion: nn.Module,
    optimizer: optax.GradientTransformation,
    parallel: DataParallel,
    ema_decay: float = 0.995,
) -> Callable[[TrainState, Arrays], tuple[TrainState, jax.Array]]:
    """One step of training, compiled once for all batches of a size.

    Args:
        diffusion: A `GaussianDiffusion`.
        optimizer: One of optax.
        parallel: The devices; the mean over the batch is the mean over all of them.
        ema_decay: Share of the old average in the new one.

    Returns:
        A function of the state, which it uses up, and of a batch as in `make_loss`; it gives the
        next state and the loss.
    """
    loss_and_gradients = jax.value_and_grad(make_loss(diffusion))

    @partial(jax.jit, donate_argnums=0, out_shardings=parallel.everywhere)
    def step(state: TrainState, batch: Arrays) -> tuple[TrainState, jax.Array]:
        loss, gradients = loss_and_gradients(state.weights, batch)
        updates, memory = optimizer.update(gradients, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        average = optax.incremental_update(weights, state.average, 1 - ema_decay)
        return TrainState(weights, average, memory), loss

    return step


def batches(
    diffusion: GaussianDiffusion, folder: Path, size: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Batches without end, read and drawn on the host.

    Args:
        diffusion: Whose clips and draws they are.
        folder: Of the clips.
        size: Clips of a batch.
        seed: What is drawn for a clip follows from it and from the clip's place in the run.
    """
    channels, frames, *image_size = diffusion.clip_shape
    # bytes: a quarter of what a device would be sent as float32
    files = Dataset(folder, tuple(image_size), channels, frames, as_uint8=True)
    clips = SeededItems(files)
    order = EndlessShuffle(range(len(clips)), seed)
    order.batch_size = size
    draw = ClipDraws(diffusion)
    for position in itertools.count(step=size):
        places = order.places(position)
        seeds = [order.seed_at(place) for place in places]
        chosen = [Draw(order.clip_at(p), s) for p, s in zip(places, seeds, strict=True)]
        drawn = draw(seeds, frames)
        del drawn["reduction"]  # the mean
        yield {"video": torch.stack([clips[each] for each in chosen]), **drawn}


def to_torch(weights: Arrays) -> dict[str, Tensor]:
    """Copies weights to tensors of the host, to be loaded with `load_state_dict`."""
    return {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}


def save(diffusion: GaussianDiffusion, state: TrainState, step: int, path: Path) -> None:
    """Writes a training file, as a Trainer's but for the optimizer."""
    model, average = (
        {**diffusion.state_dict(), **to_torch(weights)}
        for weights in (state.weights, state.average)
    )
    config = {"unet": diffusion.denoise_fn.config, "diffusion": diffusion.config}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"step": step, "model": model, "ema": average, "config": config}, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and prints losses."""
    options = _options(arguments)
    torch.manual_seed(options.seed)
    unet = Unet3D(
        dim=options.dim,
        dim_mults=options.dim_mults,
        channels=options.channels,
        attn_heads=options.attn_heads,
    )
    diffusion = GaussianDiffusion(
        unet, image_size=options.image_size, num_frames=options.num_frames
    )

    parallel = DataParallel(_first_devices(options.devices))
    print(f"{parallel.shared.num_devices} x {jax.devices()[0].device_kind}")
    optimizer = optax.adam(options.train_lr)
    state = parallel.start(diffusion, optimizer)
    take_step = make_step(diffusion, optimizer, parallel, options.ema_decay)

    clips = batches(diffusion, options.folder, options.train_batch_size, options.seed)
    for number, batch in enumerate(itertools.islice(clips, options.steps), 1):
        # it returns before the devices are done: the host reads the next batch meanwhile
        state, loss = take_step(state, parallel.share(batch))
        if number % options.print_every == 0 or number == options.steps:
            print(f"step {number}: loss {float(loss):.6f}", flush=True)
        if number % options.save_every == 0 or number == options.steps:
            save(diffusion, state, number, options.results_folder / f"model-{number}.pt")


def _first_devices(count: int | None) -> list[jax.Device]:
    available = jax.devices()
    if count is not None and not 1 <= count <= len(available):
        raise ValueError(
            f"train_with_jax: devices must be from 1 to {len(available)}, which JAX finds, got "
            f"{count}; leave it out for all"
        )
    return available[:count]


def _options(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of clips")
    parser.add_argument("--results_folder", type=Path, default=Path("results/jax"))
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dim_mults", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--attn_heads", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--train_batch_size", type=int, default=32, help="of all devices together")
    parser.add_argument("--train_lr", type=float, default=1e-4)
    parser.add_argument("--ema_decay", type=float, default=0.995)
    parser.add_argument("--devices", type=int, help="how many; all if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print_every", type=int, default=100)
    parser.add_argument("--save_every", type=int, default=1000)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
