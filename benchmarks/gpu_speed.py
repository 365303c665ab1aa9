"""Times and memory of the library on a device: the measurements of `on_a_gpu.py`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from against_reference import Case
from attention_kernels import (
    COLUMNS,
    COMPILED,
    EAGER,
    error_of,
    float32_results,
    make_inputs,
    milliseconds,
)
from attention_kernels import measure as measure_kernel
from compile_blocks import wait
from data_loading import write_clips
from gpu_correctness import errors_of, results_of
from gpu_run import (
    GIB,
    TINY,
    Clips,
    Run,
    in_turns,
    rates_of,
    search_batch,
    tf32,
    trainer_of,
)
from torch import Tensor, nn

from video_diffusion_pytorch import Unet3D
from video_diffusion_pytorch.model.attention import SpatialAttention, TemporalAttention
from video_diffusion_pytorch.model.blocks import ResnetBlock
from video_diffusion_pytorch.presets import preset
from video_diffusion_pytorch.version import __version__

COND_SCALE = 2.0
STEPS = "training steps"


# the machine


def machine(run: Run) -> None:
    """What it is, and the rates that other figures are compared with."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"cuda": torch.version.cuda, "library": __version__}
    for name in ("triton", "accelerate", "einops"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if run.is_cuda:
        about = torch.cuda.get_device_properties(0)
        size = f"{about.total_memory / GIB:.0f} GiB, {about.multi_processor_count} multiprocessors"
        device = f"{about.name}, {size}; {device}"
        versions["cudnn"] = torch.backends.cudnn.version()
        versions["driver"] = run.attempt("versions", "driver", driver_version)
    run.facts = {"device": device, "versions": versions}

    def product(dtype: torch.dtype, may_round: bool) -> dict[str, Any]:
        n = run.size.product
        a, b = torch.randn(2, n, n, device=run.device).to(dtype)
        with tf32(may_round):
            ms = milliseconds(lambda: a @ b, run.device, 4 * run.size.repeats)
        return {"ms": ms, "tflops": 2 * n**3 / ms / 1e9}

    def copied() -> dict[str, Any]:
        source = torch.randn(run.size.copied, device=run.device)
        target = torch.empty_like(source)
        ms = milliseconds(lambda: target.copy_(source), run.device, 4 * run.size.repeats)
        return {"ms": ms, "gb_per_second": 2 * source.nbytes / ms / 1e6}

    # clocks rise under load
    for _ in range(run.size.repeats):
        run.attempt("rates", "load", product, torch.bfloat16, False)
    run.add("rates", "product in bf16", product, torch.bfloat16, False)
    run.add("rates", "product in fp32", product, torch.float32, False)
    if run.is_cuda:
        run.add("rates", "product in fp16", product, torch.float16, False)
        run.add("rates", "product in fp32 with TF32", product, torch.float32, True)
    run.add("rates", "copy, bytes read and written", copied)


def driver_version() -> str | None:
    """The version of NVIDIA's driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return done.stdout.strip() or None


# training, sampling


def training(run: Run) -> None:
    """Steps here and in version 0.7.0 in turns, and how large a batch may be."""
    task = "training step"
    # as its Trainer does with amp on a GPU
    amp = "fp16" if run.is_cuda else "bf16"
    case = run.ours(task, "fp32")
    sides = {"here, fp32": (case, "fp32"), "here, bf16": (case, "bf16")}
    sides[f"0.7.0, amp ({amp})"] = (None, amp)
    row_of = rates_of(run, run.size.model, run.size.batch)
    in_turns(run, STEPS, task, sides, row_of)
    title = "batches in bf16"
    run.attempt(title, "all", search_batch, run, title, case, run.size.batch)


def sampling(run: Run) -> None:
    """A guided step of ddpm here and in 0.7.0 in turns, and videos of a few steps of dpm++."""
    task, samples = "guided sampling step", run.size.samples
    case = run.ours(task, "fp32")
    sides = {
        f"{library}, {precision}": (side, precision)
        for precision in ("fp32", "bf16")
        for library, side in {"here": case, "0.7.0": None}.items()
    }

    def row_of(seconds: float) -> dict[str, Any]:
        whole = 1000 * seconds / samples
        return {"ms_per_step": 1000 * seconds, "seconds_per_video_of_1000_steps": whole}

    in_turns(run, f"guided steps of {samples} videos", task, sides, row_of)
    for precision in ("fp32", "bf16"):
        what = f"here, {precision}, dpm++ in {run.size.few_steps} steps"
        case.case["precision"] = precision
        run.add("whole videos", what, few_steps, run, case)


def few_steps(run: Run, case: Case) -> dict[str, Any]:
    """Times whole samples."""

    def draw() -> Tensor:
        how = {"sampler": "dpm++", "steps": run.size.few_steps, "cond_scale": COND_SCALE}
        with case.autocast():
            return case.diffusion.sample(cond=case.cond, seed=1, progress=False, **how)

    ms = milliseconds(draw, run.device, run.size.rounds)
    return {
        "ms_per_step": ms / run.size.few_steps,
        "seconds_per_video": ms / 1000 / run.size.samples,
    }


# where the time goes


def profile(run: Run) -> None:
    """Kernels and gaps of a training step and of a guided step, in bf16."""
    for task in ("training step", "guided sampling step"):
        case = run.attempt("steps", task, run.ours, task, "bf16")
        if case is None:
            continue
        wall = statistics.median(one["seconds"] for one in case.turn(2 * run.size.repeats, "bf16"))
        run.attempt("steps", task, kernels_of, run, task, case, 1000 * wall)
        if task == "training step":
            run.attempt("parts of a training step", "all", parts_of, run, case)
        del case
        run.free()


def kernels_of(run: Run, task: str, case: Case, wall_ms: float) -> None:
    """Profiles a step; a row of its sums, and one for each of the longest kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    steps = 2
    activity = ProfilerActivity.CUDA if run.is_cuda else ProfilerActivity.CPU
    # the first recording starts the profiler
    for _ in "ab" if run.is_cuda else "b":
        with record(activities=[activity]) as recorded:
            start = time.perf_counter()
            for _ in range(steps):
                case.run()
            profiled_ms = 1000 * (time.perf_counter() - start) / steps
    row: dict[str, Any] = {"wall_ms": wall_ms, "profiled_wall_ms": profiled_ms}
    if run.is_cuda:
        kernels = kernels_in(recorded, run.scratch / "trace.json")
        if not kernels:
            raise RuntimeError("the profiler recorded no kernel")
        row |= gaps_of(kernels, steps)
        row["idle_ms"] = wall_ms - row["busy_ms"]
        times: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for name, _, duration in kernels:
            times[name] += duration / 1000 / steps
            counts[name] += 1
        found = [(name, counts[name], ms) for name, ms in times.items()]
    else:
        row |= dict.fromkeys(("kernels", "kernel_ms", "busy_ms", "idle_ms"))
        found = [
            (one.key, one.count, one.self_cpu_time_total / 1000 / steps)
            for one in recorded.key_averages()
        ]
    run.put("steps", task, **row)
    total = sum(ms for *_, ms in found)
    kind = "kernels" if run.is_cuda else "operations"
    for name, count, ms in sorted(found, key=lambda one: -one[2])[:20]:
        figures = {"per_step": count / steps, "ms_per_step": ms, "share": ms / total}
        run.put(f"longest {kind} of a {task}", name, **figures)


def kernels_in(recorded: Any, path: Path) -> list[tuple[str, float, float]]:
    """Name, start and duration in microseconds of everything that ran on the GPU, in order."""
    recorded.export_chrome_trace(str(path))
    events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    on_device = ("kernel", "gpu_memcpy", "gpu_memset")
    found = [
        (event["name"], float(event["ts"]), float(event["dur"]))
        for event in events
        if event.get("cat") in on_device and "dur" in event
    ]
    return sorted(found, key=lambda kernel: kernel[1])


def gaps_of(kernels: Sequence[tuple[str, float, float]], steps: int) -> dict[str, Any]:
    """Per step: number and time of kernels, the union of their times, and gaps between them."""
    busy, end, gaps = 0.0, kernels[0][1], []
    for _, start, duration in kernels:
        if start > end:
            gaps.append(start - end)
        busy += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
    return {
        "kernels": len(kernels) / steps,
        "kernel_ms": sum(duration for *_, duration in kernels) / 1000 / steps,
        "busy_ms": busy / 1000 / steps,
        "gaps_over_10_us": sum(gap > 10 for gap in gaps) / steps,
        "longest_gap_ms": max(gaps, default=0.0) / 1000,
    }


class Clock:
    """Reads the time of the device's work without waiting for it."""

    def __init__(self, is_cuda: bool) -> None:
        self.is_cuda = is_cuda

    def now(self) -> Any:
        """A moment."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds between two moments that have passed."""
        return start.elapsed_time(end) if self.is_cuda else 1000 * (end - start)


def parts_of(run: Run, case: Case) -> None:
    """Times forward, backward and optimizer, and in the forward pass each kind of layer."""
    clock, repeats = Clock(run.is_cuda), 2 * run.size.repeats + 1
    open_calls: list[Any] = []
    moments: list[tuple[str, Any, Any]] = []

    def leave(layer: nn.Module, *_: Any) -> None:
        moments.append((f"forward, {type(layer).__name__}", open_calls.pop(), clock.now()))

    kinds = (ResnetBlock, SpatialAttention, TemporalAttention)
    for layer in case.unet.modules():
        if isinstance(layer, kinds):
            layer.register_forward_pre_hook(lambda *_: open_calls.append(clock.now()))
            layer.register_forward_hook(leave)
    for number in range(repeats + 1):
        if number == 1:
            # the first one warmed up
            moments.clear()
        start = clock.now()
        with case.autocast():
            loss = case.diffusion(case.videos)
        forward = clock.now()
        loss.backward()
        backward = clock.now()
        case.optimizer.step()
        case.optimizer.zero_grad()
        moments += [("forward", start, forward), ("backward", forward, backward)]
        moments.append(("optimizer", backward, clock.now()))
        wait(run.device)
    times: dict[str, float] = {}
    for what, start, end in moments:
        times[what] = times.get(what, 0.0) + clock.between(start, end) / repeats
    for what in sorted(times):
        run.put("parts of a training step", what, ms=times[what])


def attention(run: Run) -> None:
    """Kernels at the shapes of each resolution, and for fewer and more frames at the finest."""
    size, model = run.size, run.size.model
    heads, width = model.get("attn_heads", 8), model.get("attn_dim_head", 32)
    _, frames, height, _ = size.clip
    rows = [size.batch * (height >> level) ** 2 for level in range(len(model["dim_mults"]))]
    shapes = [(rows[0], frames), *((rows[0], n) for n in (5, 16)), *((r, frames) for r in rows[1:])]
    # what compiles last, as it takes longest
    for kernels in (list(EAGER), list(COMPILED)):
        for shape in shapes:
            run.attempt("kernels", str(shape), kernels_at, run, (*shape, heads, width), kernels)


def kernels_at(run: Run, shape: tuple[int, int, int, int], kernels: Sequence[str]) -> None:
    """Rows of kernels at a shape."""
    inputs = make_inputs(*shape, torch.bfloat16, run.device)
    with tf32(False):
        expected = float32_results(inputs)
    for name in kernels:
        what, repeats = f"{shape[0]} rows of {shape[1]}: {name}", 2 * run.size.repeats
        row = run.attempt(
            "kernels", what, measure_kernel, name, inputs, expected, repeats, run.compiler
        )
        if row is not None:
            run.put("kernels", what, **{key: row[key] for key in COLUMNS[3:]})


# the trainer


def loader(run: Run) -> None:
    """Clips per second of a Trainer that reads files, and the share of its time that it waits."""
    clips, cache = run.scratch / "clips", run.scratch / "cache"
    write_clips(clips, run.size.files, ".gif")
    sources: dict[str, dict[str, Any]] = {
        "in memory": {"dataset": Clips(4 * run.size.batch, run.size.clip), "num_workers": 0},
        "gif": {"folder": clips},
        "gif, cache=": {"folder": clips, "cache": cache},
    }
    for i, (what, source) in enumerate(sources.items()):
        seconds = run.left() / (len(sources) - i)
        run.add("Trainer, bf16", what, train_for, run, seconds, run.scratch / f"run-{i}", source)


def train_for(run: Run, seconds: float, folder: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Trains for so many seconds, of which those of the first steps do not count."""
    end = time.monotonic() + 0.9 * seconds
    trainer = trainer_of(run, run.size.model, folder, train_batch_size=run.size.batch, **source)
    steps: list[tuple[float, float]] = []

    def note(log: dict[str, Any]) -> None:
        steps.append((time.perf_counter(), log["data_wait"]))
        if time.monotonic() > end or len(steps) > 20 * run.size.repeats:
            trainer.train_num_steps = trainer.step

    trainer.train(log_fn=note)
    counted = steps[min(5, len(steps) - 2) :] if len(steps) > 2 else []
    row: dict[str, Any] = {"steps": len(steps), "workers": trainer.num_workers}
    if len(counted) < 2:
        return {**row, "note": "too few steps in the time"}
    rate = run.size.batch * (len(counted) - 1) / (counted[-1][0] - counted[0][0])
    alone = run.earlier("training", STEPS, "here, bf16", "clips_per_second")
    row |= {"clips_per_second": rate, "of_the_step_alone": None if alone is None else rate / alone}
    return {**row, "data_wait": statistics.mean(share for _, share in counted[1:])}


# the paper's model


def paper_preset(run: Run) -> None:
    """Time and memory of steps of the preset `ucf101`, with and without checkpointing."""
    chosen = preset("ucf101")
    if run.size is TINY:
        _, frames, size, _ = run.size.clip
        small = {"base_channels": 4, "multipliers": (1, 2), "attention_at": (4,), "head_width": 4}
        chosen = dataclasses.replace(chosen, size=size, frames=frames, image_frames=2, **small)
    shape = (1, 3, chosen.frames, chosen.size, chosen.size)
    settings = {"model": chosen.unet, "shape": shape, "images": chosen.image_frames}
    case = run.ours("training step", "bf16", diffusion=chosen.diffusion, **settings)
    for checkpointing in (False, True):
        case.unet.gradient_checkpointing = checkpointing
        title = f"bf16, {chosen.image_frames} images per clip"
        title += ", gradient checkpointing" if checkpointing else ""
        run.attempt(title, "all", search_batch, run, title, case, 1)


# compilation


def compiled(run: Run) -> None:
    """Blocks compiled one by one: time to compile, steps, errors, and graphs by batch."""
    task = "training step"
    cases = {what: run.ours(task, "bf16") for what in ("here, bf16", "here, bf16, compiled")}
    blocks = cases["here, bf16, compiled"]
    blocks.unet.compile_blocks(fullgraph=True, backend=run.compiler)
    if run.add("compilation", "first step", blocks.run) is not None:
        sides = {what: (case, "bf16") for what, case in cases.items()}
        row_of = rates_of(run, run.size.model, run.size.batch)
        in_turns(run, STEPS, task, sides, row_of)
        run.attempt("errors", "all", compare_compiled, run, cases)
    for way in ("blocks", "whole"):
        run.add("graphs that are compiled, by batch", way, graphs_by_batch, run, way)


def compare_compiled(run: Run, cases: dict[str, Case]) -> None:
    """Errors in bf16 against float32."""
    with tf32(False):
        exact = results_of(cases["here, bf16"], "fp32")
    for what, case in cases.items():
        add = partial(run.add, "relative errors against fp32", what)
        add(lambda c=case: errors_of(results_of(c, "bf16"), exact))


def graphs_by_batch(run: Run, way: str) -> dict[str, int]:
    """How many graphs a network's training traces at each new batch; it compiles nothing."""
    count = 0

    def note(graph: Any, _: Any) -> Any:
        nonlocal count
        count += 1
        return graph.forward

    torch._dynamo.reset()
    unet = Unet3D(**{**run.size.model, "dim": 8}).to(run.device)
    (unet.compile_blocks if way == "blocks" else unet.compile)(backend=note, fullgraph=True)
    found = {}
    for batch in (4, 3, 2, 1):
        before, x = count, torch.randn(batch, 3, 3, 16, 16, device=run.device)
        unet(x, torch.zeros(batch, device=run.device)).square().mean().backward()
        found[f"batch_{batch}"] = count - before
    torch._dynamo.reset()
    return found


def graphs(run: Run) -> None:
    """The network of a guided step by itself, in a CUDA graph, and compiled into such graphs."""
    title = "network of a guided step in bf16"
    case = run.ours("guided sampling step", "bf16")
    for batch in (run.size.samples, 1):
        expected = run.attempt(title, f"{batch} videos", lambda b=batch: guided(run, case, b)())
        if expected is None:
            continue
        for what, make in {"eager": guided, "CUDA graph": captured}.items():
            if what != "eager" and not run.is_cuda:
                run.put(title, f"{batch} videos, {what}", ms=None, note="needs a GPU")
                continue
            arguments = (run, make, case, batch, expected)
            run.add(title, f"{batch} videos, {what}", time_of_network, *arguments)
        if run.is_cuda:
            what = f"{batch} videos, torch.compile(mode='reduce-overhead')"
            run.add(title, what, time_of_network, run, reduced, case, batch, expected)


def time_of_network(
    run: Run, make: Callable[..., Any], case: Case, batch: int, expected: Tensor
) -> dict[str, Any]:
    """Time of a call, its error against the eager one, and seconds until the first call is done."""
    start = time.perf_counter()
    call = make(run, case, batch)
    output = call().clone()
    wait(run.device)
    row = {"seconds_to_first": time.perf_counter() - start, "error": error_of(output, expected)}
    ms = milliseconds(call, run.device, 4 * run.size.repeats)
    return {"ms": ms, "ms_per_video": ms / batch, **row}


def guided(run: Run, case: Case, batch: int) -> Callable[[], Tensor]:
    """The network's call in a guided step."""
    x, t, cond = (tensor[:batch].clone() for tensor in (case.videos, case.t, case.cond))

    def call() -> Tensor:
        # a graph must not keep weights that autocast had converted before
        autocast = torch.autocast(run.device.type, torch.bfloat16, cache_enabled=False)
        with torch.no_grad(), autocast:
            return case.unet.forward_with_cond_scale(x, t, cond=cond, cond_scale=COND_SCALE)

    return call


def captured(run: Run, case: Case, batch: int) -> Callable[[], Tensor]:
    """The same as one CUDA graph."""
    call, stream = guided(run, case, batch), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def reduced(run: Run, case: Case, batch: int) -> Callable[[], Tensor]:
    """The same with a copy of the network that is compiled as a whole, for this batch alone."""
    other = copy.copy(case)
    other.unet = copy.deepcopy(case.unet)
    other.unet.compile(mode="reduce-overhead", fullgraph=True, dynamic=False)
    return guided(run, other, batch)
