"""Times this library against version 0.7.0 of the PyPI package, side by side in one run.

    python benchmarks/against_reference.py                   # installs the reference into a folder
    python benchmarks/against_reference.py --reference DIR   # DIR holds it already

Each library runs in its own process, on the same weights and inputs. The two alternate, and the
medians of their times are compared. Each case starts new processes, so that the peak of the memory
is that of the case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = "video-diffusion-pytorch==0.7.0"

# keywords of Unet3D, and the shape of the videos
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "dim 64, 1 x 3x10x64x64": ({"dim": 64, "dim_mults": (1, 2, 4, 8)}, (1, 3, 10, 64, 64)),
    "dim 16, 16 x 1x8x16x16": (
        {"dim": 16, "dim_mults": (1, 2, 4), "channels": 1, "attn_heads": 4},
        (16, 1, 8, 16, 16),
    ),
    "dim 32, 2 x 3x8x32x32": ({"dim": 32, "dim_mults": (1, 2, 4)}, (2, 3, 8, 32, 32)),
    "dim 16, 1 x 1x64x32x32": (
        {"dim": 16, "dim_mults": (1, 2, 4), "channels": 1},
        (1, 1, 64, 32, 32),
    ),
}
# on a GPU also the reference's README setting
CUDA_MODELS = {"dim 64, 32 x 3x10x64x64": ({"dim": 64}, (32, 3, 10, 64, 64))}
COND_DIM = 64
TASKS = ("forward", "training step", "guided sampling step")
# dtypes of autocast
PRECISIONS = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}


class Case:
    """One library's side of a case, in the process of that library.

    Args:
        case: `model`, keywords of the network; `shape` of the videos; `task`, one of `TASKS`;
            `precision`, a key of `PRECISIONS`; `device`; `threads`; `side`, `"ours"` or
            `"reference"`. Optional: `folder`, where the reference writes its weights and this
            library reads them, if they are there; `diffusion`, more keywords of
            `GaussianDiffusion`; `images`, independent images per clip.
    """

    def __init__(self, case: dict[str, Any]) -> None:
        import torch

        from video_diffusion_pytorch import GaussianDiffusion, Unet3D

        torch.set_num_threads(case["threads"])
        torch.manual_seed(0)
        self.torch, self.case = torch, case
        b, channels, frames, size, _ = case["shape"]
        guided = case["task"] == "guided sampling step"
        unet = Unet3D(**case["model"], cond_dim=COND_DIM if guided else None)
        settings = {"image_size": size, "num_frames": frames, "channels": channels}
        settings |= {"timesteps": 1000, **case.get("diffusion", {})}
        diffusion = GaussianDiffusion(unet, **settings)
        weights = Path(case["folder"]) / "weights.pt" if "folder" in case else None
        if case["side"] == "reference":
            torch.save(diffusion.state_dict(), weights)
        elif weights is not None and weights.exists():
            diffusion.load_state_dict(torch.load(weights, weights_only=True))
        self.device = torch.device(case["device"])
        self.unet, self.diffusion = unet.to(self.device), diffusion.to(self.device)
        generator = torch.Generator().manual_seed(1)
        self.videos = torch.rand(case["shape"], generator=generator).to(self.device)
        self.t = torch.randint(0, 1000, (b,), generator=generator).to(self.device)
        self.cond = torch.randn(b, COND_DIM, generator=generator).to(self.device)
        self.images = {}
        if case.get("images"):
            shape = (b, channels, case["images"], size, size)
            self.images["images"] = torch.rand(shape, generator=generator).to(self.device)
        self.optimizer = torch.optim.Adam(diffusion.parameters(), lr=0.0)
        # the reference's amp
        self.scaler = torch.amp.GradScaler(self.device.type)

    def autocast(self) -> Any:
        """The context of a forward pass in this precision."""
        dtype = PRECISIONS[self.case["precision"]]
        if dtype is None:
            return contextlib.nullcontext()
        return self.torch.autocast(self.device.type, getattr(self.torch, dtype))

    def work(self) -> Any:
        """Does the case's task once."""
        torch = self.torch
        if self.case["task"] == "forward":
            with torch.no_grad(), self.autocast():
                return self.unet(self.videos, self.t)
        if self.case["task"] == "training step":
            torch.manual_seed(2)
            with self.autocast():
                loss = self.diffusion(self.videos, **self.images)
            if self.case["precision"] == "fp16":
                self.scaler.scale(loss).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                loss.backward()
                self.optimizer.step()
            self.optimizer.zero_grad()
            return loss.detach()
        torch.manual_seed(2)
        with torch.no_grad(), self.autocast():
            return self.diffusion.p_sample(self.videos, self.t, cond=self.cond, cond_scale=2.0)

    def turn(self, repeats: int, precision: str) -> list[dict[str, float]]:
        """Times the task several times after a warm-up, and frees a GPU's memory for others.

        Args:
            repeats: Number of timed runs.
            precision: As in `case`, and that of later runs.
        """
        self.case["precision"], cuda = precision, self.device.type == "cuda"
        if cuda:
            self.torch.cuda.reset_peak_memory_stats()
        runs = [self.run() for _ in range(repeats + 1)]
        if cuda:
            self.torch.cuda.empty_cache()
        return runs[1:]

    def run(self, save: str | None = None) -> dict[str, float]:
        """Times the task, and saves its result where asked to."""
        torch, cuda = self.torch, self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = self.work()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if save:
            torch.save(result.float().cpu(), save)
        if cuda:
            peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return {"seconds": seconds, "peak_mib": peak}


def worker() -> None:
    """Answers a case, then any number of runs of it, in lines of JSON.

    The arguments of a turn ask for one, anything else for a run, whose result goes to this file.
    """
    case = Case(json.loads(sys.stdin.readline()))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        answer = case.turn(**message) if isinstance(message, dict) else case.run(message)
        print(json.dumps(answer), flush=True)


class Side:
    """A worker process, seen from here."""

    def __init__(self, library: Path, case: dict[str, Any]) -> None:
        # the folder comes first on the path, before an installed version
        code = (
            f"import sys; sys.path[:0] = [{str(library)!r}, {str(REPOSITORY / 'benchmarks')!r}]; "
            "import warnings; warnings.simplefilter('ignore'); "
            "import against_reference; against_reference.worker()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=case["folder"],
        )
        self.ask(case)

    def ask(self, message: Any) -> Any:
        """Sends a message, and waits for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def compare(case: dict[str, Any], reference: Path, repeats: int) -> dict[str, Any]:
    """Runs one case on both sides in turns."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for side, library in (("reference", reference), ("ours", REPOSITORY)):
            sides[side] = Side(library, {**case, "folder": folder, "side": side})
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for repeat in range(repeats + 2):
            for side, process in sides.items():
                run = process.ask(f"{side}.pt" if repeat == 0 else None)
                if repeat >= 2:  # the first two warm up
                    runs[side].append(run)
        ours, theirs = (torch.load(f"{folder}/{side}.pt") for side in ("ours", "reference"))
        for process in sides.values():
            process.close()
    return {
        "seconds": {side: statistics.median(r["seconds"] for r in runs[side]) for side in runs},
        "peak": {side: max(r["peak_mib"] for r in runs[side]) for side in runs},
        "difference": ((ours - theirs).abs().max() / theirs.abs().max()).item(),
    }


def matmul_rate(threads: int, device: str = "cpu") -> float:
    """FLOP/s of a 2048-cubed fp32 matrix product on this machine's CPU, or its GPU."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2, 2048, 2048, device=device).unbind()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)  # the rate of the machine, not of its other users


def step_flops(model: dict[str, Any], shape: tuple[int, ...]) -> float:
    """Arithmetic of a training step's products, counted by torch on the reference's network."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from video_diffusion_pytorch import Unet3D

    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        unet = Unet3D(**model)
        unet(torch.empty(shape), torch.zeros(shape[0], dtype=torch.long)).sum().backward()
    return counter.get_total_flops()


def install_reference(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), REFERENCE], check=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="a folder that holds the reference")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="run the cases whose name holds one of these"
    )
    args = parser.parse_args()
    import torch

    if args.reference is None:
        args.reference = install_reference(Path(tempfile.mkdtemp()) / "reference")
    rate = matmul_rate(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, medians of {args.repeats} runs;")
    print(f"fp32 matrix products on this CPU: {rate / 1e9:.0f} GFLOP/s")
    print(f"{'':64}{'ours':>9}{'reference':>11}{'ratio':>7}{'peak MiB':>15}{'difference':>12}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        models = {**MODELS, **CUDA_MODELS} if device == "cuda" else MODELS
        for name, (model, shape) in models.items():
            for task in TASKS:
                for precision in ("fp32", "bf16"):
                    title = f"{device} {precision} {task}: {name}"
                    if not any(part in title for part in args.only):
                        continue
                    case = {"model": model, "shape": shape, "task": task, "precision": precision}
                    case |= {"device": device, "threads": args.threads}
                    result = compare(case, args.reference, args.repeats)
                    ours, theirs = result["seconds"]["ours"], result["seconds"]["reference"]
                    peaks = "/".join(
                        f"{result['peak'][side]:.0f}" for side in ("ours", "reference")
                    )
                    print(
                        f"{title:64}{ours:8.3f}s{theirs:10.3f}s{theirs / ours:7.2f}{peaks:>15}"
                        f"{result['difference']:12.1e}",
                        flush=True,
                    )
                    if task == "training step" and device == "cpu" and precision == "fp32":
                        flops = step_flops(model, shape)
                        share = flops / ours / rate
                        print(
                            f"  {flops / 1e9:.0f} GFLOP: {share:.0%} of the matrix products' rate"
                        )


if __name__ == "__main__":
    main()
