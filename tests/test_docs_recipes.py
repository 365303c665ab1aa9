"""Runs the recipes of `docs/recipes.md`, at a size that takes seconds."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import video_diffusion_pytorch
from tests.docs_code import (
    ROOT,
    TINY_BERT,
    TRAINING,
    Page,
    SmallPage,
    array,
    checkpoints,
    clip,
    diffusion,
    small_options,
    unet,
)
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.training import evaluate as validation

PAGE = Page("recipes.md")
ECHO, FINE_TUNING, CAPTIONS, CT, SIZES = [t for t in PAGE.sections if t != PAGE.start]
# the page's clips have 16 or 64 frames of 64 to 128 pixels, those here 4 or 16 of 16
SMALLER = {"16": "4", "50": "2", "64": "16", "112": "16", "128": "16"}


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # each validation clip with one time step instead of a dozen
    monkeypatch.setattr(validation, "_LEAST", 1)


@pytest.fixture
def small(monkeypatch):
    """Runs Python code of the page, which imports small networks and short training."""
    page = SmallPage(PAGE, SMALLER)
    for name, made in page.small.items():
        monkeypatch.setattr(video_diffusion_pytorch, name, made)
    return page


def run_commands(title, capsys):
    for program, *argv in PAGE.commands(title):
        assert program == "video-diffusion"
        if "--init_from" in argv:
            # the network is the trained one's
            argv += [f"--{name}={value}" for name, value in TRAINING.items()]
        elif argv[0] == "train":
            argv += small_options(timesteps=2)
        assert main(argv) is None, (argv, capsys.readouterr().err)
        if argv[0] == "sample":
            assert Path(argv[argv.index("-o") + 1]).stat().st_size > 0


# 1. Echocardiograms


def echonet():
    """Writes films and a table in the layout of EchoNet-Dynamic."""
    [header] = re.findall(r"FileName,[\w,]+", PAGE.sections[ECHO])
    rows = [header]
    folder = Path("EchoNet-Dynamic/Videos")
    folder.mkdir(parents=True)
    for number, split in enumerate(("TRAIN", "TRAIN", "VAL", "TEST")):
        name = f"0X1A0A263B22CCD96{number}"
        with av.open(folder / f"{name}.avi", "w") as file:
            stream = file.add_stream("mjpeg", rate=50)
            stream.width, stream.height, stream.pix_fmt = 112, 112, "yuvj420p"
            for frame in np.random.default_rng(number).integers(256, size=(60, 112, 112)):
                grey = av.VideoFrame.from_ndarray(frame.astype(np.uint8), format="gray")
                file.mux(stream.encode(grey))
            file.mux(stream.encode())
        rows.append(f"{name},{30 + 10.5 * number},30.25,70.5,112,112,50,60,{split}")
    Path("EchoNet-Dynamic/FileList.csv").write_text("\n".join(rows))


def test_echocardiograms_by_ejection_fraction(small):
    echonet()
    training, sampling = PAGE.blocks(ECHO)
    small.run(training, sampling.replace('"cuda"', '"cpu"'))
    [trainer] = small.trainers
    assert trainer.step == 1
    assert [path.stem[-1] for path in trainer.ds.paths] == ["0", "1"]
    assert trainer.ds[1]["cond"].tolist() == [40.5]
    assert "validation_loss" in trainer.validate()
    assert small.names["videos"].shape == (8, 1, 4, 16, 16)
    assert Path("echo.mp4").stat().st_size > 0


def test_commands_of_echocardiograms(capsys):
    echonet()
    run_commands(ECHO, capsys)


# 2. Fine-tuning


def new_clips_and_a_trained_model(tmp_path):
    for number, name in enumerate(("calm", "calm", "stormy", "stormy", "stormy")):
        clip(f"new_clips/{name}/{number}.mp4")
    model = diffusion(unet(), image_size=16, num_frames=4)
    checkpoints(tmp_path, {"films": model})
    return model


def test_fine_tuning(small, tmp_path):
    model = new_clips_and_a_trained_model(tmp_path)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    on_clips, on_classes = PAGE.blocks(FINE_TUNING)
    small.run(on_clips)
    assert small.names["videos"].shape == (4, 3, 4, 16, 16)
    small.run(on_classes)
    for trainer in small.trainers:
        assert trainer.step == 1
    after = dict(small.trainers[0].model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if ".downs." in name]


def test_commands_of_fine_tuning(tmp_path, capsys):
    new_clips_and_a_trained_model(tmp_path)
    run_commands(FINE_TUNING, capsys)


# 3. Captions


def test_captions_without_python(capsys):
    for name, caption in {"7": "a bird on a branch", "8": "a whale diving"}.items():
        clip(f"captioned/{name}.mp4").with_suffix(".txt").write_text(caption)
    clip("more_captioned/1.mp4").with_suffix(".txt").write_text("a whale breaching")
    [options] = PAGE.blocks(CAPTIONS, "yaml")
    assert "bert-base-cased" in options
    Path("captions.yaml").write_text(options.replace("bert-base-cased", str(TINY_BERT)))
    run_commands(CAPTIONS, capsys)


# 4. Volumes


def test_volumes_of_different_depths(small):
    nibabel = pytest.importorskip("nibabel")
    Path("scans").mkdir()
    for name, depth in {"scans/6": 6, "scans/30": 30, "patient": 30}.items():
        volume = np.linspace(-1024, 3000, 20 * 18 * depth, dtype=np.float32)
        scan = nibabel.Nifti1Image(volume.reshape(20, 18, depth), np.eye(4))
        nibabel.save(scan, f"{name}.nii.gz")
    training, inpainting = PAGE.blocks(CT)
    small.run(training, inpainting.replace('"cuda"', '"cpu"'))
    [trainer] = small.trainers
    assert trainer.step == 1
    assert sorted(int(trainer.ds[i]["frame_mask"].sum()) for i in range(2)) == [6, 16]
    assert trainer.ds[1]["video"].max() <= 1000
    assert nibabel.load("sample.nii.gz").shape == (16, 16, 16)
    scan, filled, known = (small.names[name] for name in ("scan", "filled", "known"))
    assert scan.shape == filled.shape == (1, 1, 30, 16, 16)
    assert torch.equal(filled[:, :, known], scan[:, :, known])
    assert not torch.equal(filled[:, :, ~known], scan[:, :, ~known])
    assert Path("slab.mp4").stat().st_size > 0


def test_commands_of_volumes(capsys):
    for depth in (6, 30):
        array(f"volumes/{depth}.npy", (depth, 18, 20))
    run_commands(CT, capsys)
    assert np.load("volumes.npy").shape == (1, 1, 4, 16, 16)


def test_the_table_of_sizes_is_what_the_benchmark_prints(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import fits_a_gpu

    fits_a_gpu.main(["--clips", "64,16,64,8"])
    title, *_, header, line, row = capsys.readouterr().out.splitlines()
    assert "COMPUTED, not measured" in title
    assert f"{header}\n{line}\n" in PAGE.sections[SIZES]
    # what autograd saves differs a little between versions of torch
    [on_page] = re.findall(r"^\| 64 x 64 \| 16 \| 64 \| 8 \|.*", PAGE.sections[SIZES], re.M)
    found, given = (list(map(float, re.findall(r"[\d.]+", text))) for text in (row, on_page))
    assert found == pytest.approx(given, rel=0.1, abs=1)
    assert fits_a_gpu.largest_batch(10, 1, 3) == 2
    assert fits_a_gpu.largest_batch(10, 9, 3) == 0
