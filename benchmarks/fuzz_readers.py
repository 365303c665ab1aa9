"""Feeds damaged files of every format to the readers: each must be read, or refused by one error.

    python benchmarks/fuzz_readers.py --count 2000
    python benchmarks/fuzz_readers.py --count 200 --formats gif mp4 --seed 7

For each format, small valid files are damaged at random: flipped bits, overwritten runs, cut and
inserted pieces, splices, numbers in headers set to extremes. One process per format reads them all
through `read_video`. A failure is any exception but `UnreadableVideoError`, a file that takes
longer than 10 seconds, a process that dies, and a file left open. Inputs that fail are kept.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

MOVIES = ["mp4", "m4v", "mov", "mkv", "webm", "avi"]
# read as the only still of a folder
STILLS = ["jpg", "bmp", "tif"]
FORMATS = ["gif", "webp", "png", *MOVIES, *STILLS, "npy", "npz", "pt"]
SECONDS = 10.0
EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01")
CODECS = {
    "mp4": ("libx264", "mpeg4", "libx265"),
    "m4v": ("libx264", "mpeg4"),
    "mov": ("libx264", "png", "mjpeg"),
    "mkv": ("libx264", "ffv1", "libvpx-vp9"),
    "webm": ("libvpx", "libvpx-vp9"),
    "avi": ("mpeg4", "mjpeg", "libx264"),
}


# Seeds


def pictures() -> list[np.ndarray]:
    """Eight frames of 32 x 24 pixels in which something moves."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 255, (6, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    return [np.roll(blocks, 2 * number, axis=1) for number in range(8)]


def write_movie(path: Path, codec: str) -> None:
    import av

    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=quiet)
        stream.width, stream.height = 32, 24
        stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = 4
        for pixels in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_animation(path: Path, **options: Any) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(pixels) for pixels in pictures()]
    first.save(path, save_all=True, append_images=rest, duration=100, **options)


def write_still(path: Path, mode: str) -> None:
    from PIL import Image

    Image.fromarray(pictures()[0]).convert(mode).save(path)


def write_array(path: Path, dtype: str, **notes: Any) -> None:
    import torch

    video = np.stack(pictures()).astype(dtype)
    if path.suffix == ".npy":
        np.save(path, video)
    elif path.suffix == ".npz":
        (np.savez_compressed if notes else np.savez)(path, video=video, **notes)
    else:
        tensor = torch.from_numpy(video)
        torch.save({"video": tensor, **notes} if notes else tensor, path)


def seeds(ending: str, folder: Path) -> list[bytes]:
    """The content of small valid files."""
    writers: list[Callable[[Path], None]]
    if ending in CODECS:
        writers = [lambda path, codec=codec: write_movie(path, codec) for codec in CODECS[ending]]
    elif ending in ("npy", "npz", "pt"):
        writers = [
            lambda path: write_array(path, "u1"),
            lambda path: write_array(path, ">f4" if ending != "pt" else "f4", fps=10, axes="fhwc"),
        ]
    elif ending in STILLS:
        writers = [lambda path, mode=mode: write_still(path, mode) for mode in ("RGB", "L")]
    elif ending == "webp":
        writers = [write_animation, lambda path: write_animation(path, lossless=True)]
    else:
        writers = [write_animation, lambda path: write_animation(path, disposal=2)]
    contents = []
    for number, write in enumerate(writers):
        path = folder / f"seed{number}.{ending}"
        write(path)
        contents.append(path.read_bytes())
    return contents


# Damage


def damage(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a file in one to three ways; most changes fall into its first or last kilobyte."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        total = max(len(data), 1)
        near = rng.choice([min(total, 200), min(total, 1000), total])
        at = rng.randrange(near)
        if rng.random() < 0.3:
            at = total - 1 - at
        length = rng.choice([1, 2, 4, 8, 64])
        kind = rng.randrange(7)
        if kind == 0:
            data[at : at + 1] = bytes([(data[at] if data else 0) ^ 1 << rng.randrange(8)])
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            data[at : at + length] = rng.choice(EXTREMES) * length
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data[at:at] = rng.randbytes(length)
        elif kind == 5:
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        else:
            del data[at : at + length]
    return bytes(data)


def read(path: Path) -> str:
    """Read a file wholly and a frame of its middle; return the outcome."""
    from video_diffusion_pytorch.data.video_file import UnreadableVideoError, open_video, read_video

    try:
        video, _ = read_video(path, max_bytes=2**28)
        with open_video(path) as reader:
            middle = [reader.num_frames // 2]
            list(reader.array(middle) if reader.is_array else reader.pictures(middle))
            _ = reader.times, reader.fps
        return "read" if video.numel() else "failure: no values"
    except UnreadableVideoError:
        return "refused"
    except Exception:
        return "failure: " + traceback.format_exc()


# The process that reads, and the one that watches it


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def peak_mebibytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // scale


def serve(tasks: Any, answers: Any, warm_up: list[Path]) -> None:
    """Read files until there are no more; every answer includes the open files and the memory."""
    import gc

    import torch

    torch.set_num_threads(1)
    for path in warm_up:
        read(path)
    before, before_mebibytes = open_files(), peak_mebibytes()
    answers.put(("ready", 0, before_mebibytes))
    while (path := tasks.get()) is not None:
        outcome = read(path)
        if open_files() > before:
            gc.collect()
        answers.put((outcome, open_files() - before, peak_mebibytes()))


class Reader:
    """A process that reads files, replaced by a new one when it dies or hangs."""

    def __init__(self, warm_up: list[Path]) -> None:
        self.context, self.warm_up = get_context("spawn"), warm_up
        self.start()

    def start(self) -> None:
        """Start a new process, and measure its memory before it has read anything."""
        self.tasks, self.answers = self.context.Queue(), self.context.Queue()
        arguments = (self.tasks, self.answers, self.warm_up)
        self.process = self.context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        self.mebibytes_at_start = self.wait(60)[2]

    def wait(self, seconds: float) -> tuple[str, int, int]:
        """Give the process's next answer, or "hang" or "crash" as the outcome of a file."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self.answers.get(timeout=0.5)
            except queue.Empty:
                if not self.process.is_alive():
                    return f"crash: exit code {self.process.exitcode}", 0, 0
        return "hang", 0, 0

    def read(self, path: Path) -> tuple[str, int, int]:
        """Have a file read: the outcome, the files left open, the peak of memory in MiB."""
        self.tasks.put(path)
        answer = self.wait(SECONDS)
        if answer[0] == "hang" or answer[0].startswith("crash"):
            self.process.kill()
            self.process.join()
            self.start()
        return answer

    def stop(self) -> None:
        """Let the process end."""
        self.tasks.put(None)
        self.process.join(10)


def fuzz(ending: str, count: int, seed: int, keep: Path) -> tuple[Counter[str], int, int]:
    """Read `count` damaged files; give the outcomes, the files left open, the growth of memory."""
    outcomes: Counter[str] = Counter()
    leaked = growth = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contents = seeds(ending, folder)
        reader = Reader([] if ending in STILLS else sorted(folder.iterdir()))
        rng = random.Random(f"{seed} {ending}")
        for number in range(count):
            path = folder / "damaged" / f"{number}.{ending}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(damage(rng.choice(contents), rng.choice(contents), rng))
            is_still = ending in STILLS
            outcome, open_now, mebibytes = reader.read(path.parent if is_still else path)
            kind = outcome.partition(":")[0]
            outcomes[kind] += 1
            leaked = max(leaked, open_now)
            growth = max(growth, mebibytes - reader.mebibytes_at_start)
            if kind not in ("read", "refused") or open_now > 0:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, keep)
                print(f"{keep / path.name}: {outcome} ({open_now} left open)", file=sys.stderr)
            path.unlink()
        reader.stop()
    return outcomes, leaked, growth


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="damaged files of each format")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args(arguments)
    print(
        "| format | inputs | read | refused | other errors | crashes | hangs | left open | memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    good = True
    for ending in options.formats:
        outcomes, leaked, growth = fuzz(ending, options.count, options.seed, options.keep)
        numbers = [outcomes[kind] for kind in ("read", "refused", "failure", "crash", "hang")]
        good = good and sum(numbers[2:]) + leaked == 0
        cells = [ending, options.count, *numbers, leaked, f"+{growth} MiB"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
