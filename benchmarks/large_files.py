"""Memory of a training on one large file of fields, compared with a small file.

    python benchmarks/large_files.py

For each format a file of `--gigabytes` and one of 64 frames are written, in chunks of one frame,
and a tiny model is trained on random windows of each, in a process of its own. The table has the
peak of the resident memory of the process and of its workers, and by how much the large file
raises it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SIDE, SMALL = 256, 64
FORMATS = ("nc", "h5", "zarr", "nii")
MIB = 2**20


def write(path: Path, frames: int) -> None:
    """Writes frames of noise in chunks of one frame."""
    rng = np.random.default_rng(0)
    kind = path.suffix
    if kind == ".nii":
        import nibabel

        volume = np.lib.format.open_memmap(
            path.with_suffix(".npy"), "w+", np.float32, (SIDE, SIDE, frames)
        )
        for frame in range(frames):
            volume[..., frame] = rng.standard_normal((SIDE, SIDE), np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
        path.with_suffix(".npy").unlink()
        return
    shape, chunks = (frames, SIDE, SIDE), (1, SIDE, SIDE)
    if kind == ".zarr":
        import zarr

        array = zarr.create_array(
            path, shape=shape, chunks=chunks, dtype="f4", dimension_names=["time", "y", "x"]
        )
        file = None
    else:
        import h5netcdf

        # a NetCDF-4 file is an HDF5 file with names of dimensions
        file = h5netcdf.File(path, "w")
        file.dimensions = dict(zip(("time", "y", "x"), shape, strict=True))
        array = file.create_variable("u", ("time", "y", "x"), "f4", chunks=chunks)
    for frame in range(frames):
        array[frame] = rng.standard_normal((SIDE, SIDE), np.float32)
    if file is not None:
        file.close()


def train(folder: Path, workers: int) -> None:
    """Trains on a folder, and prints the peak of the memory, in bytes."""
    import torch

    from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D

    torch.set_num_threads(1)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=1, init_kernel_size=3)
    diffusion = GaussianDiffusion(unet, image_size=32, num_frames=8, timesteps=10)
    trainer = Trainer(
        diffusion,
        folder,
        clip_start="random",
        value_range="standardize",
        train_batch_size=8,
        gradient_accumulate_every=1,
        train_num_steps=30,
        save_and_sample_every=30,
        num_sample_rows=1,
        num_workers=workers,
        results_folder=folder.parent / f"{folder.name}-results",
    )
    trainer.train(log_fn=lambda line: None)
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    print(json.dumps([peak * 1024 for peak in peaks]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--formats", nargs="+", default=[*FORMATS], choices=FORMATS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train is not None:
        train(options.train, options.workers)
        return
    large = round(options.gigabytes * 1e9 / (4 * SIDE**2))
    print("| format | workers | small file | large file | more | a worker, more |")
    print("|---|---|---|---|---|---|")
    for kind in options.formats:
        with tempfile.TemporaryDirectory() as folder:
            for name, frames in (("small", SMALL), ("large", large)):
                (Path(folder) / name).mkdir()
                write(Path(folder) / name / f"a.{kind}", frames)
            for workers in (0, 2):
                found = []
                for name in ("small", "large"):
                    command = [sys.executable, __file__, "--train", str(Path(folder) / name)]
                    command += ["--workers", str(workers)]
                    run = subprocess.run(command, check=True, capture_output=True, text=True)
                    found.append(json.loads(run.stdout.splitlines()[-1]))
                (small, small_worker), (big, big_worker) = found
                more = f"{(big_worker - small_worker) / MIB:+.0f} MiB" if workers else ""
                print(
                    f"| {kind} | {workers} | {small / MIB:.0f} MiB | {big / MIB:.0f} MiB "
                    f"| {(big - small) / MIB:+.0f} MiB | {more} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
