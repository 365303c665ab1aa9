"""Checks and measures the library on a GPU within a given time: all that a first session needs.

    python benchmarks/on_a_gpu.py --seconds 540 --reference video_diffusion_pytorch-0.7.0.whl
    python benchmarks/on_a_gpu.py --seconds 60 --tiny --device cpu      # a trial without a GPU
    python benchmarks/on_a_gpu.py --parts machine training attention

The parts are in `PARTS`; `gpu_speed.py` and `gpu_correctness.py` hold what they do. Each runs in a
process of its own: an error, a hang or a fault of the device in one does not end the others. First
all of them import the libraries, which does not count as time. A part then has its share of the
time that is left, and a later one gets what it did not need. What no longer fits is left out, and
the report says so. `on_a_gpu.json` holds every figure and the traceback of every error,
`on_a_gpu.md` the tables; both are written after each part. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
SEED = 0
CHILD = "--child"
# seconds that imports may take
IMPORTS = 120
# seconds below which a part is not started
LEAST = 1.5
# seconds in which killed processes end and the report is written
RESERVE = 1.0
# of a part's share, the rest being there to end an unfinished measurement
SOFT = 0.85


class Part(NamedTuple):
    """A part: its title, its weight in the shares of the time, and `module:function`."""

    title: str
    weight: float
    function: str


PARTS = {
    "machine": Part("The machine and its rates", 1, "gpu_speed:machine"),
    "correctness": Part(
        "Errors against the reference and float32", 2, "gpu_correctness:correctness"
    ),
    "training": Part("Training steps in the README's setting", 4, "gpu_speed:training"),
    "sampling": Part("Guided sampling", 3, "gpu_speed:sampling"),
    "profile": Part("Where a step spends its time", 3, "gpu_speed:profile"),
    "attention": Part("Kernels for attention over frames", 3, "gpu_speed:attention"),
    "loader": Part("Training from files", 3, "gpu_speed:loader"),
    "resume": Part("Resumed runs, bit by bit", 3, "gpu_correctness:resume"),
    "preset": Part("Training steps of the preset ucf101", 2, "gpu_speed:paper_preset"),
    "compiled": Part("Compiled blocks", 6, "gpu_speed:compiled"),
    "graphs": Part("CUDA graphs for sampling", 4, "gpu_speed:graphs"),
}


# the process of a part


def child(function: str, scratch: Path) -> None:
    """Imports a part, `module:function`, waits for a line on stdin, and runs `task.json`."""
    # a group of its own, of which all processes can be ended; no session, so that they are not
    # left behind where the caller's session is ended
    os.setpgid(0, 0)
    sys.path.insert(0, str(REPOSITORY))
    from gpu_run import Run

    module, _, name = function.partition(":")
    part = getattr(importlib.import_module(module), name)
    (scratch / "ready").touch()
    if sys.stdin.readline():
        Run(json.loads((scratch / "task.json").read_text()), scratch).do(part)
    sys.stdout.flush()
    # at once, as its results are written: not after compilers, workers and the device
    os._exit(0)


class Process:
    """The process of a part, which imports the libraries and waits for its turn.

    Args:
        function: The part, `module:function`.
        scratch: Folder that is made for its log and its files.
    """

    def __init__(self, function: str, scratch: Path) -> None:
        scratch.mkdir(parents=True)
        self.scratch, self.log = scratch, scratch / "log"
        # compilation is measured with empty caches
        caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        environment = {**os.environ, **{name: str(scratch / name.lower()) for name in caches}}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, CHILD, function, str(scratch)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                cwd=scratch,
                env=environment,
            )

    def wait_for_imports(self) -> None:
        """Returns when it can run, or has failed."""
        end = time.monotonic() + IMPORTS
        while not (self.scratch / "ready").exists() and self.process.poll() is None:
            if time.monotonic() > end:
                break
            time.sleep(0.02)

    def run(self, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What the report says of the part; it is stopped after so many seconds."""
        start, timed_out = time.monotonic(), False
        (self.scratch / "task.json").write_text(json.dumps(task))
        assert self.process.stdin is not None
        try:
            # one that has failed in its imports no longer reads
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write("go\n")
                self.process.stdin.close()
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            self.end()
        found = {"tables": {}, "errors": [], "left_out": [], "facts": {}, "done": False}
        results = self.scratch / "results.json"
        if results.exists():
            found |= json.loads(results.read_text())
        status, why = self._status(found, timed_out, seconds)
        if status == "failed" or found["errors"]:
            # also of the processes that the part started
            found["log"] = self.log.read_text(errors="replace")[-4000:]
        del found["done"]
        return {"status": status, "why": why, "seconds": time.monotonic() - start, **found}

    def _status(
        self, found: dict[str, Any], timed_out: bool, seconds: float
    ) -> tuple[str, str | None]:
        if timed_out and not found["done"]:
            return "cut", f"stopped after {seconds:.0f} s, its share of the time"
        if not found["done"]:
            last = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            return "failed", f"ended with exit code {self.process.returncode}: {last}"
        if found["errors"]:
            last = found["errors"][0]["traceback"].strip().rpartition("\n")[2]
            return "failed", f"{len(found['errors'])} errors, the first: {last}"
        if found["left_out"]:
            return "cut", f"no time left for: {', '.join(found['left_out'])}"
        return "ok", None

    def end(self) -> None:
        """Ends it and the processes that it started."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        # a process that waits for a broken device may not end at all
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


# all parts


def run_parts(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Runs the parts within the time after their imports, and writes the report after each."""
    names = [name for name in PARTS if name in options.parts]
    report: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "options": {key: str(value) for key, value in vars(options).items()},
        "seed": SEED,
        "device": None,
        "versions": None,
        "parts": {},
    }
    common = {"device": options.device, "tiny": options.tiny, "seed": SEED}
    common |= {"reference": unpacked(options.reference, scratch)}
    processes: dict[str, Process] = {}
    try:
        for name in names:
            processes[name] = Process(PARTS[name].function, scratch / name)
        for process in processes.values():
            process.wait_for_imports()
        deadline = time.monotonic() + options.seconds - RESERVE
        for i, name in enumerate(names):
            left = deadline - time.monotonic()
            share = left * PARTS[name].weight / sum(PARTS[other].weight for other in names[i:])
            result: dict[str, Any] = {"status": "skipped", "why": f"{max(left, 0):.0f} s were left"}
            if share >= LEAST:
                print(f"{name}: {share:.0f} s at most", file=sys.stderr, flush=True)
                task = {"seconds": SOFT * share, "earlier": report["parts"], **common}
                result = processes[name].run(task, share)
            facts = result.pop("facts", {})
            report |= {key: value for key, value in facts.items() if value is not None}
            report["parts"][name] = {"title": PARTS[name].title, **result}
            write_report(report, options.out)
    finally:
        for process in processes.values():
            process.end()
    return report


def unpacked(reference: Path | None, scratch: Path) -> str | None:
    """A folder to import version 0.7.0 from."""
    if reference is None or reference.is_dir():
        return None if reference is None else str(reference.resolve())
    folder = scratch / "reference"
    with zipfile.ZipFile(reference) as wheel:
        wheel.extractall(folder)
    return str(folder)


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Writes `on_a_gpu.json` and `on_a_gpu.md`, replacing those of the part before."""
    texts = {"json": json.dumps(report, indent=1), "md": markdown(report)}
    for ending, text in texts.items():
        path = folder / f"on_a_gpu.{ending}"
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)


# tables


def markdown(report: dict[str, Any]) -> str:
    """The tables of all parts, then a summary."""
    lines = [f"# {report['device'] or 'Device unknown'}"]
    for part in report["parts"].values():
        if part.get("tables"):
            lines += ["", f"## {part['title']}"]
        for title, rows in part.get("tables", {}).items():
            lines += ["", f"{title[:1].upper()}{title[1:]}:", "", *table(rows)]
    summary = [
        {"part": name, **{key: part.get(key) for key in ("status", "seconds", "why")}}
        for name, part in report["parts"].items()
    ]
    if report["versions"] is not None:
        lines += ["", ", ".join(f"{name} {value}" for name, value in report["versions"].items())]
    return "\n".join([*lines, "", "## Summary", "", *table(summary)])


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table; its columns are those of any row that are not empty in all."""
    names = dict.fromkeys(name for row in rows for name in row)
    names = [
        name for name in names if name[0] != "_" and any(row.get(name) is not None for row in rows)
    ]
    yield f"| {' | '.join(name.replace('_', ' ') for name in names)} |"
    yield "|---" * len(names) + "|"
    for row in rows:
        yield f"| {' | '.join(shown(row.get(name)) for name in names)} |"


def shown(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    text = " ".join(str(value).replace("|", "/").split())
    return text if len(text) <= 100 else f"{text[:97]}..."


# the command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=540, help="for all parts together, after their imports"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, as always on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default CUDA, if it is there")
    parser.add_argument("--reference", type=Path, help="a folder or a wheel of version 0.7.0")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "."))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    if options.reference is not None and not is_reference(options.reference):
        parser.error(
            "--reference must be a folder or a wheel with version 0.7.0 of the package, got "
            f"{options.reference}; make it with pip install --no-deps --target, or pip download"
        )
    return options


def is_reference(path: Path) -> bool:
    """Whether a folder or a wheel holds version 0.7.0."""
    module = "video_diffusion_pytorch/video_diffusion_pytorch.py"
    metadata = "video_diffusion_pytorch-0.7.0.dist-info/METADATA"
    if path.is_dir():
        return (path / module).is_file() and (path / metadata).is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as wheel:
        return {module, metadata} <= {*wheel.namelist()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables last; gives 1 if a part failed, else 0."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        report = run_parts(options, Path(scratch))
    print(markdown(report))
    return int(any(part["status"] == "failed" for part in report["parts"].values()))


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        # also then the processes of the parts are ended
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        sys.exit(main())
