"""Tables of how time and memory grow with frames, image size, batch and `dim`, part by part.

    python benchmarks/growth.py
    python benchmarks/growth.py --frames 16 64 --with attn_heads=2 --with temporal_attn_levels=[1,2]
    python benchmarks/growth.py --batch 4 --rounds 3 --with gradient_checkpointing=true
    python benchmarks/growth.py --device cuda --base dim=64 dim_mults=[1,2,4,8]

One of the four varies at a time around a base point, for a training step (forward and backward
pass and Adam) and for a guided sampling step. The network of each `--with` is measured at each
point as well. There are tables of the time, of the arithmetic of matrix products and convolutions,
counted on the meta device, and of what autograd keeps for the backward pass, on the device.

Each point runs in a new process, so that the peak of the memory, less what the process took
before, is its own. Steps with and without the hooks that divide them take turns, and times are
medians. The growth is the exponent of the whole step since the row before: 1 is linear. For the
image size it is that of the number of pixels.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from against_reference import COND_DIM, Case, matmul_rate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from video_diffusion_pytorch import Unet3D
from video_diffusion_pytorch.model.attention import SpatialAttention, TemporalAttention
from video_diffusion_pytorch.model.blocks import FramewiseConv, FramewiseConvTranspose, ResnetBlock
from video_diffusion_pytorch.training.metrics import peak_memory

TASKS = {"training": "training step", "sampling": "guided sampling step"}
# what varies, and the values it takes
AXES = {
    "frames": [8, 16, 32, 64],
    "size": [16, 32, 64, 128],
    "batch": [1, 2, 4, 8],
    "dim": [16, 32, 64],
}
BASE = {"frames": 16, "size": 32, "batch": 1, "dim": 16, "dim_mults": [1, 2, 4]}
# residual blocks are convolutions, with their norms
ATTENTIONS = ("linear attention", "softmax attention", "temporal attention")
PARTS = ("convolutions", *ATTENTIONS, "optimizer", "rest")
# what a table is about, its unit, and how many of the numbers that it is made of are one
TABLES = {"time": ("time", "s", 1), "flops": ("arithmetic", "GFLOP", 1e9)}
TABLES |= {"kept": ("kept for the backward pass", "MiB", 2**20)}

Point = dict[str, Any]
Result = dict[str, Any]


def layers(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The layers of a network that are not in another one, and the part that each belongs to."""
    for layer in module.children():
        if isinstance(layer, (ResnetBlock, FramewiseConv, FramewiseConvTranspose)):
            yield layer, "convolutions"
        elif isinstance(layer, TemporalAttention):
            yield layer, "temporal attention"
        elif isinstance(layer, SpatialAttention):
            yield layer, "linear attention" if layer.linear else "softmax attention"
        else:
            yield from layers(layer)


@contextmanager
def by_part(
    network: Unet3D, clock: Callable[[], float], optimizer: torch.optim.Optimizer | None = None
) -> Iterator[dict[str, float]]:
    """Attributes what a clock counts to the part of the network that is at work.

    Hooks read the clock where the forward and the backward pass of a layer begin and end; autograd
    runs the nodes of a layer one after the other. What is between layers is the rest.

    Args:
        network: The network, which is used within the context.
        clock: Gives seconds, or anything else that grows.
        optimizer: Its optimizer; None for none.

    Yields:
        What was counted, by part; complete after the context.
    """
    totals, at, read = dict.fromkeys(PARTS, 0.0), ["rest"], clock()

    def lap() -> None:
        nonlocal read
        before, read = read, clock()
        totals[at[-1]] += read - before

    def enter(part: str, *_: object) -> None:
        lap()
        at.append(part)

    def leave(*_: object) -> None:
        lap()
        at.pop()

    hooks = []
    for layer, part in layers(network):
        hooks.append(layer.register_forward_pre_hook(partial(enter, part)))
        # recomputation ends as soon as it has what it needs, by an exception
        hooks.append(layer.register_forward_hook(leave, always_call=True))
        hooks.append(layer.register_full_backward_pre_hook(partial(enter, part)))
        # the video needs no gradient: the backward pass of the first layer does not end in a hook,
        # and what little follows it counts with it
        if layer is not network.init_conv:
            hooks.append(layer.register_full_backward_hook(leave))
    if optimizer is not None:
        hooks.append(optimizer.register_step_pre_hook(partial(enter, "optimizer")))
        hooks.append(optimizer.register_step_post_hook(leave))
    yield totals
    lap()
    for hook in hooks:
        hook.remove()


def network_of(point: Point) -> dict[str, Any]:
    """The keywords of `Unet3D` at a point."""
    return {k: v for k, v in point.items() if k not in ("task", "frames", "size", "batch")}


def shape_of(point: Point) -> tuple[int, ...]:
    """The shape of the videos."""
    image = point["size"], point["size"]
    return point["batch"], point.get("channels", 3), point["frames"], *image


def flops(point: Point) -> dict[str, float]:
    """Counts the floating-point operations of a step, by part."""
    shape, counter = shape_of(point), FlopCounterMode(display=False)
    trains = point["task"] == "training"
    with torch.device("meta"):
        unet = Unet3D(**network_of(point), cond_dim=None if trains else COND_DIM)
        x, t = torch.empty(shape), torch.zeros(shape[0], dtype=torch.long)
        cond = torch.empty(shape[0], COND_DIM)
    with counter, by_part(unet, counter.get_total_flops) as parts:
        if trains:
            unet(x, t).sum().backward()
        else:
            with torch.no_grad():
                unet.forward_with_cond_scale(x, t, cond, cond_scale=2.0)
    return parts


def kept(case: Case) -> dict[str, float]:
    """Counts the bytes that a step keeps from the forward to the backward pass, by part."""
    weights = {p.data_ptr() for p in [*case.diffusion.parameters(), *case.diffusion.buffers()]}
    # references, as the address of a freed storage may be used again
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    def clock() -> float:
        return sum(storage.nbytes() for storage in storages.values())

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        by_part(case.unet, clock) as parts,
    ):
        case.diffusion(case.videos)
    return parts


def measure(point: Point, device: str, threads: int, repeats: int) -> Result:
    """Seconds of a step and MiB at its peak, in this process, and what `TABLES` show, by part."""
    before = peak_memory(torch.device(device))
    if before is None:
        raise SystemExit("growth.py: memory is measured on Linux or on a GPU, got neither")
    case = Case(
        {
            "model": network_of(point), "shape": shape_of(point), "task": TASKS[point["task"]],
            "threads": threads, "device": device, "precision": "fp32", "side": "ours",
        }
    )  # fmt: skip

    def clock() -> float:
        if case.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    case.run(None)  # also makes the moments
    whole, divided = [], []
    for repeat in range(repeats):
        whole.append(case.run(None)["seconds"])
        if repeat == 0:  # hooks keep gradients for longer
            peak = peak_memory(case.device)
        with by_part(case.unet, clock, case.optimizer) as parts:
            case.run(None)
        divided.append(parts)
    found = {"seconds": statistics.median(whole), "peak": peak - before, "time": medians(divided)}
    found["flops"] = flops(point)
    if point["task"] == "training":
        found["kept"] = kept(case)
    return found


def medians(results: Sequence[Result]) -> Result:
    """The median of each number."""
    return {
        name: medians([each[name] for each in results])
        if isinstance(value, dict)
        else statistics.median(each[name] for each in results)
        for name, value in results[0].items()
    }


def run_points(
    points: Sequence[Point], runs: dict[str, list[Result]], options: argparse.Namespace
) -> None:
    """Adds to `runs` what `measure` gives at each point, in new processes that take turns."""
    given = ["--device", options.device, "--threads", str(options.threads)]
    given += ["--repeats", str(options.repeats)]
    for number, key in itertools.product(range(options.rounds), map(json.dumps, points)):
        if len(runs.setdefault(key, [])) > number:  # the base point is on each axis
            continue
        command = [sys.executable, __file__, "--point", key, *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"growth.py: {key} ended with exit code {done.returncode}")
        runs[key].append(json.loads(done.stdout.splitlines()[-1]))


def table(
    axis: str, quantity: str, rows: Sequence[tuple[Point, str, Result]], rate: float
) -> list[str]:
    """The lines of one table.

    Args:
        axis: What varies.
        quantity: A key of `TABLES`.
        rows: Points, how their networks differ from the first, and what was found.
        rate: FLOP/s of the device's matrix products.
    """
    _, unit, one = TABLES[quantity]
    heads = [axis, "options", f"a clip, {unit}", "growth"]
    if quantity == "time":
        heads += ["of the matrix rate", "peak of a clip, MiB", "growth"]
    lines = [f"| {' | '.join([*heads, *PARTS])} |", "|---" * (len(heads) + len(PARTS)) + "|"]
    above: dict[str, tuple[float, dict[str, float]]] = {}
    for point, differs, found in rows:
        parts = found[quantity]
        total = sum(parts.values())
        x = point[axis] ** 2 if axis == "size" else point[axis]
        amounts = {**parts, "total": found["seconds"] if quantity == "time" else total}
        amounts["peak"] = found["peak"]
        growth = exponents(x, amounts, *above.get(differs, (x, {})))
        above[differs] = x, amounts
        cells = [str(point[axis]), differs, f"{amounts['total'] / one / point['batch']:.4g}"]
        cells.append(growth["total"])
        if quantity == "time":
            cells.append(f"{sum(found['flops'].values()) / found['seconds'] / rate:.0%}")
            cells += [f"{found['peak'] / point['batch']:.4g}", growth["peak"]]
        for name, amount in parts.items():
            cells.append(", ".join(filter(None, (f"{amount / total:.0%}", growth[name]))))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def exponents(
    x: float, amounts: dict[str, float], x_before: float, before: dict[str, float]
) -> dict[str, str]:
    """Growth exponents of amounts since those before; empty texts where there are none."""
    found = dict.fromkeys(amounts, "")
    for name, amount in amounts.items():
        if x != x_before and amount > 0 and before[name] > 0:
            found[name] = f"{math.log(amount / before[name]) / math.log(x / x_before):.2f}"
    return found


def setting(text: str) -> tuple[str, Any]:
    """A name and its value, from `name=value`."""
    name, _, value = text.partition("=")
    known = (BASE.keys() | inspect.signature(Unet3D).parameters) - {"cond_dim"}
    if name not in known:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(sorted(known))}, got {name}")
    try:
        return name, json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected {name}= and a JSON value, such as 2, true or [1,2], got {text}"
        ) from None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for axis, values in AXES.items():
        shown = " ".join(map(str, values))
        text = f"its values ({shown}); without the other three it varies alone"
        parser.add_argument(f"--{axis}", type=int, nargs="+", help=text)
    settings: Any = {"type": setting, "nargs": "+", "metavar": "NAME=VALUE"}
    parser.add_argument("--base", default=[], help="the base point and its network", **settings)
    text = "another network, or point, to compare; may be repeated"
    parser.add_argument("--with", dest="others", action="append", default=[], help=text, **settings)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="steps in a process")
    parser.add_argument("--rounds", type=int, default=1, help="processes for each point, in turns")
    parser.add_argument("--point", type=json.loads, help="only print what is found at this point")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    options = parse(arguments)
    if options.point is not None:
        print(json.dumps(measure(options.point, options.device, options.threads, options.repeats)))
        return

    rate = matmul_rate(options.threads, options.device)
    base = BASE | dict(options.base)
    chosen = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis)} or AXES
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads;")
    print(f"fp32 matrix products: {rate / 1e9:.0f} GFLOP/s; around {json.dumps(base)}")
    runs: dict[str, list[Result]] = {}
    for task, (axis, values) in itertools.product(options.tasks, chosen.items()):
        rows = []
        for value, other in itertools.product(values, [[], *options.others]):
            differs = ", ".join(f"`{name}={json.dumps(given)}`" for name, given in other)
            rows.append(({**base, axis: value, **dict(other), "task": task}, differs))
        run_points([point for point, _ in rows], runs, options)
        found = [(*row, medians(runs[json.dumps(row[0])])) for row in rows]
        for quantity in (name for name in TABLES if name in found[0][2]):
            print(f"\n{TASKS[task].capitalize()}, by {axis}: {TABLES[quantity][0]}\n")
            print("\n".join(table(axis, quantity, found, rate)), flush=True)
    off = [sum(run["time"].values()) / run["seconds"] for run in itertools.chain(*runs.values())]
    print(f"\nThe parts of a step add up to {min(off):.0%} to {max(off):.0%} of an undivided one.")


if __name__ == "__main__":
    main()
