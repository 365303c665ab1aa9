"""What the measurements of `on_a_gpu.py` share: a part that runs, its sizes, turns and steps."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from against_reference import Case, Side, step_flops
from compile_blocks import wait
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.training.memory import activation_bytes, is_out_of_memory, state_bytes
from video_diffusion_pytorch.training.optimizer import make_optimizer

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the measurements are.

    Attributes:
        model: Keywords of `Unet3D`.
        clip: Shape of a clip, `(c, f, h, w)`.
        batch: Clips of a training step.
        samples: Videos that are drawn at a time.
        few_steps: Steps of a fast sampler.
        product: Rows and columns of the matrices whose product gives the machine's rate.
        copied: Values of the tensor whose copy gives its bandwidth.
        repeats: Timed runs of a turn, of which there are `rounds`.
        rounds: Turns of each side.
        files: Clips in the folder that the loader reads.
        largest: Batches beyond are not tried.
    """

    model: dict[str, Any]
    clip: tuple[int, int, int, int]
    batch: int
    samples: int
    few_steps: int
    product: int
    copied: int
    repeats: int
    rounds: int
    files: int
    largest: int


README = Size(
    {"dim": 64, "dim_mults": (1, 2, 4, 8)},
    clip=(3, 10, 64, 64),
    batch=32,
    samples=16,
    few_steps=20,
    product=8192,
    copied=2**30,
    repeats=5,
    rounds=3,
    files=640,
    largest=1024,
)
TINY = Size(
    {"dim": 4, "dim_mults": (1, 2), "attn_heads": 1, "attn_dim_head": 8},
    clip=(3, 2, 8, 8),
    batch=2,
    samples=2,
    few_steps=3,
    product=128,
    copied=2**16,
    repeats=1,
    rounds=1,
    files=4,
    largest=4,
)


class Run:
    """A part while it runs: what it may use, and what it has found.

    Args:
        task: What `on_a_gpu.py` asks for.
        scratch: A folder of its own, in which its results are kept.

    Attributes:
        device: The device to measure.
        size: Sizes of the measurements.
        reference: Folder of version 0.7.0; None for none.
        compiler: Backend of `torch.compile`.
        side: The process of version 0.7.0; None before its first turn.
        tables: Rows of figures, by the title of their table.
        errors: Where an error was, and its traceback.
        left_out: What there was no time for.
        facts: Entries of the whole report.
    """

    def __init__(self, task: dict[str, Any], scratch: Path) -> None:
        self.task, self.scratch, self.start = task, scratch, time.monotonic()
        kind = task["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device, self.is_cuda = torch.device(kind), kind == "cuda"
        self.size = README if self.is_cuda and not task["tiny"] else TINY
        self.reference = None if task["reference"] is None else Path(task["reference"])
        # a C++ compiler would take minutes
        self.compiler = "inductor" if self.is_cuda else "eager"
        self.side: Side | None = None
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.errors: list[dict[str, str]] = []
        self.left_out: list[str] = []
        self.facts: dict[str, Any] = {}
        torch.manual_seed(task["seed"])

    def do(self, part: Callable[[Run], None]) -> None:
        """Runs a part, and keeps its error if it has one."""
        try:
            part(self)
        except Exception:
            self.fail("the part", traceback.format_exc())
        self.save(done=True)

    def left(self) -> float:
        """Seconds that the part still has."""
        return self.start + self.task["seconds"] - time.monotonic()

    def add(
        self, title: str, what: str, measure: Callable[..., dict[str, Any]], *args: Any
    ) -> dict[str, Any] | None:
        """Adds a row to a table: what a function gives, or its error; returns it if it has none."""
        row = self.attempt(title, what, measure, *args)
        if row is not None:
            self.put(title, what, **row)
        return row

    def put(self, title: str, what: str, **figures: Any) -> None:
        """Adds a row to a table, or figures to the row of that name."""
        rows = self.tables.setdefault(title, [])
        row = next((row for row in rows if row["what"] == what), {"what": what})
        if row not in rows:
            rows.append(row)
        row.update(figures)
        self.save()

    def attempt(self, title: str, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function; gives None, and adds a row, after an error or if no time is left."""
        if self.left() <= 0:
            self.left_out.append(f"{title}: {what}")
            self.save()
            return None
        try:
            return function(*args)
        except Exception as error:
            self.fail(f"{title}: {what}", traceback.format_exc())
            self.put(title, what, error=f"{type(error).__name__}: {error}"[:500])
        # a device that does not work any more ends the part here
        self.free()
        return None

    def fail(self, what: str, text: str) -> None:
        """Notes an error."""
        self.errors.append({"what": what, "traceback": text})

    def free(self) -> None:
        """Gives memory back that nothing uses."""
        gc.collect()
        if self.is_cuda:
            wait(self.device)
            torch.cuda.empty_cache()

    def save(self, done: bool = False) -> None:
        """Writes what is known so far."""
        found = {name: getattr(self, name) for name in ("tables", "errors", "left_out", "facts")}
        path = self.scratch / "results.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({**plain(found), "done": done}))
        temporary.replace(path)

    def earlier(self, part: str, title: str, what: str, figure: str) -> float | None:
        """A figure of a part that has run before; None if there is none."""
        rows = self.task["earlier"].get(part, {}).get("tables", {}).get(title, [])
        return next((row.get(figure) for row in rows if row["what"] == what), None)

    def case(self, task: str, precision: str, **changes: Any) -> dict[str, Any]:
        """A case for `Case` or `Side`."""
        batch = self.size.samples if task == "guided sampling step" else self.size.batch
        settings = {"model": self.size.model, "shape": (batch, *self.size.clip), "task": task}
        settings |= {"precision": precision, "device": str(self.device), "side": "ours"}
        settings |= {"threads": torch.get_num_threads(), "folder": str(self.scratch)}
        return settings | changes

    def ours(self, task: str, precision: str, **changes: Any) -> Case:
        """This library's side of a case, with the optimizer of its Trainer."""
        case = Case(self.case(task, precision, **changes))
        case.optimizer = make_optimizer(case.diffusion, lr=0.0)
        return case


def plain(value: Any) -> Any:
    """A value that JSON has: numbers that are not finite as words."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


# what several parts do


def in_turns(
    run: Run,
    title: str,
    task: str,
    sides: dict[str, tuple[Case | None, str]],
    row_of: Callable[[float], dict[str, Any]],
) -> None:
    """Times sides in turns, so that whatever else goes on meets all of them; adds a row for each.

    Args:
        run: The part.
        title: Of the table.
        task: As in a case.
        sides: A case of this library, or None for version 0.7.0, and a precision, by row.
        row_of: Figures of a row, from the median of the seconds.
    """
    sides = dict(sides)
    if run.reference is None:
        for what in [what for what, (case, _) in sides.items() if case is None]:
            del sides[what]
            run.put(title, what, note="left out, as no --reference was given")
    medians: dict[str, list[float]] = {what: [] for what in sides}
    peaks: dict[str, float] = {}
    for number in range(run.size.rounds + 1):
        start = time.monotonic()
        for what, side in list(sides.items()):
            runs = run.attempt(title, what, turn, run, task, *side)
            if runs is None:
                del sides[what]
            # the first round only warms up
            elif number:
                medians[what].append(statistics.median(one["seconds"] for one in runs))
                peaks[what] = max(one["peak_mib"] for one in runs) / 2**10
        for what, seconds in medians.items():
            if len(seconds) == number > 0:
                median = statistics.median(seconds)
                figures = {**row_of(median), "turns": number}
                figures["spread"] = (max(seconds) - min(seconds)) / median
                run.put(title, what, **figures, peak_gib=peaks[what] if run.is_cuda else None)
        if number and run.left() < time.monotonic() - start:
            break
    if run.side is not None:
        run.side.close()


def turn(run: Run, task: str, case: Case | None, precision: str) -> list[dict[str, float]]:
    """A turn of this library, or of version 0.7.0, whose process is started by the first one."""
    how = {"repeats": run.size.repeats, "precision": precision}
    if case is not None:
        return case.turn(**how)
    if run.side is None:
        assert run.reference is not None
        run.side = Side(run.reference, run.case(task, precision, side="reference"))
    return run.side.ask(how)


def rates_of(run: Run, model: dict[str, Any], batch: int) -> Callable[[float], dict[str, Any]]:
    """What gives, for the seconds of a training step, clips per second and share of the rate."""
    rate = run.earlier("machine", "rates", "product in bf16", "tflops")
    flops = step_flops(model, (1, *run.size.clip)) * batch

    def row_of(seconds: float) -> dict[str, Any]:
        share = None if rate is None else flops / seconds / (rate * 1e12)
        speed = {"ms": 1000 * seconds, "clips_per_second": batch / seconds}
        return {**speed, "share_of_bf16_rate": share}

    return row_of


def step_with(run: Run, case: Case, batch: int, state: int, clip: int) -> dict[str, Any]:
    """Figures of a training step of so many clips, or that they are too many.

    Args:
        run: The part.
        case: A training step.
        batch: The number of clips.
        state: Predicted bytes of weights, gradients and optimizer.
        clip: Predicted bytes of the activations of a clip.
    """
    row: dict[str, Any] = {"clips": batch, "predicted_gib": (state + batch * clip) / GIB}
    runs: list[dict[str, float]] = []
    try:
        case.videos = torch.rand((batch, *case.videos.shape[1:]), device=run.device)
        for name, images in case.images.items():
            case.images[name] = torch.rand((batch, *images.shape[1:]), device=run.device)
        runs = case.turn(2, "bf16")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if not runs:
        case.optimizer.zero_grad()
        run.free()
        return {**row, "fits": False}
    seconds = statistics.median(one["seconds"] for one in runs)
    row |= {"fits": True, "ms": 1000 * seconds, "clips_per_second": batch / seconds}
    return {**row, "peak_gib": runs[-1]["peak_mib"] / 2**10 if run.is_cuda else None}


def search_batch(run: Run, title: str, case: Case, batch: int) -> None:
    """Looks for the largest batch that fits: doubling, then bisecting; a row for each step."""
    images = sum(tensor.shape[2] for tensor in case.images.values())
    state = state_bytes(case.diffusion, averages=0)
    clip = activation_bytes(case.diffusion, precision="bf16", image_frames=images)
    fits, too_many = 0, 0
    while fits < batch <= run.size.largest:
        row = run.add(title, f"{batch} clips", step_with, run, case, batch, state, clip)
        if row is None:
            return
        fits, too_many = (batch, too_many) if row["fits"] else (fits, batch)
        # to a sixteenth
        batch = 2 * batch if not too_many else fits + (too_many - fits) // 2
        if too_many and too_many - fits <= fits // 16:
            return


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Whether products and convolutions in float32 may use TF32."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = enabled
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


class Clips(torch.utils.data.Dataset):
    """Random clips in memory.

    Args:
        count: Number of clips.
        shape: Of a clip.
    """

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.clips = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"video": self.clips[i]}


def trainer_of(run: Run, model: dict[str, Any], results: Path, **options: Any) -> Trainer:
    """A Trainer of the clips' shape, without milestones."""
    torch.manual_seed(run.task["seed"])
    channels, frames, size, _ = run.size.clip
    diffusion = GaussianDiffusion(
        Unet3D(**model), image_size=size, num_frames=frames, channels=channels
    )
    how = {"gradient_accumulate_every": 1, "amp": True, "save_and_sample_every": 10**6}
    how |= {"device": str(run.device), "seed": run.task["seed"], "results_folder": results}
    return Trainer(diffusion, **{**how, **options})
