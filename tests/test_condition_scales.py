"""Numeric conditions in their own units, standardised: what is found, and what the network sees."""

import re

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.dataset import Dataset

SCALES = {"cond": {"mean": (50.0, 101325.0), "std": (10.0, 500.0)}}
TRAINING = {
    "train_batch_size": 2, "train_num_steps": 1, "save_and_sample_every": 1, "num_sample_rows": 1,
    "num_workers": 0, "gradient_accumulate_every": 1,
}  # fmt: skip


def model(unet=None, **options):
    torch.manual_seed(0)
    network = {"dim_mults": (1,), "channels": 1, "attn_heads": 1, "attn_dim_head": 8}
    sizes = {"image_size": 8, "num_frames": 3, "timesteps": 4, "cond_drop_prob": 0.0}
    return GaussianDiffusion(Unet3D(8, **network, **(unet or {})), **{**sizes, **options})


def clips(count=3):
    return torch.rand(count, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "unet", "shape", "axis"),
    [
        ("cond", {"cond_dim": 2}, (3, 2), -1),
        ("frame_cond", {"frame_cond_dim": 2}, (3, 3, 2), -1),
        ("cond_video", {"cond_channels": 2}, (3, 2, 3, 8, 8), 1),
        ("cond_video", {"cond_channels": 2}, (3, 2, 8, 8), 1),
    ],
)
def test_the_network_sees_standardised_conditions(name, unet, shape, axis):
    """As another model that is given them so, in training and in samples."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor([50.0, 101325.0]), torch.tensor([10.0, 500.0])
    view = [1] * normal.ndim
    view[axis] = 2
    raw = normal * std.view(view) + mean.view(view)
    scaled = model(unet, cond_standardization={name: {"mean": mean, "std": std}})
    plain = model(unet)
    t, noise = torch.tensor([0, 1, 3]), torch.randn(3, 1, 3, 8, 8)
    losses = [
        diffusion(clips(), t=t, noise=noise, reduction="none", **{name: value})
        for diffusion, value in ((scaled, raw), (plain, normal))
    ]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    quiet = {"seed": 0, "progress": False, "cond_scale": 2.0}
    samples = [
        diffusion.sample(**{name: value}, **quiet)
        for diffusion, value in ((scaled, raw), (plain, normal))
    ]
    torch.testing.assert_close(*samples, rtol=1e-2, atol=1e-2)


def test_known_frames_are_not_conditions_of_this_kind():
    unet = {"cond_channels": 3}
    scales = {"cond_video": {"mean": 100.0, "std": 7.0}}
    scaled = model(unet, given_frames=1, cond_standardization=scales)
    plain = model(unet, given_frames=1)
    field = torch.randn(3, 1, 8, 8)
    t, noise = torch.tensor([0, 1, 3]), torch.randn(3, 1, 3, 8, 8)
    ours = scaled(clips(), t=t, noise=noise, cond_video=field * 7 + 100)
    theirs = plain(clips(), t=t, noise=noise, cond_video=field)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


def test_weights_remember_the_scale(tmp_path):
    diffusion = model({"cond_dim": 2}, cond_standardization=SCALES)
    state = diffusion.state_dict()
    torch.testing.assert_close(state["cond_mean"], torch.tensor([50.0, 101325.0]))
    with pytest.raises(ValueError, match=r"the model's cond_standardization, None, got \{'co"):
        model({"cond_dim": 2}).load_state_dict(state)
    again = model({"cond_dim": 2}, cond_standardization=SCALES)
    again.load_state_dict(state)
    diffusion.save_pretrained(tmp_path)
    assert GaussianDiffusion.from_pretrained(tmp_path).config["cond_standardization"] == SCALES
    # without one, nothing is stored
    assert not [name for name in model({"cond_dim": 2}).state_dict() if name.startswith("cond_")]


@pytest.mark.parametrize(
    ("scales", "line"),
    [
        ({"label": {"mean": 0, "std": 1}}, "cond_standardization must be a mapping of cond, frame"),
        ({"cond": (0, 1)}, "must be a mapping of cond, frame_cond, cond_video to a mean and std"),
        ({"cond": {"mean": 0, "std": 0}}, "must have standard deviations above 0, got 0"),
        ({"cond": {"mean": (0, 1), "std": (1, 1, 1)}}, "must have one finite mean and std, or 3"),
    ],
)
def test_mistakes(scales, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        model({"cond_dim": 2}, cond_standardization=scales)


def test_other_mistakes():
    diffusion = model({"cond_dim": 3}, cond_standardization=SCALES)
    with pytest.raises(ValueError, match=r"cond must have the 2 entries of cond_stand"):
        diffusion(clips(), cond=torch.zeros(3, 3))
    scales = {"cond_video": {"mean": 0, "std": 1}}
    diffusion = model({"cond_channels": 1}, cond_standardization=scales)
    with pytest.raises(ValueError, match=r"cond_video.*got.*\(3,\)"):
        diffusion(clips(), cond_video=torch.zeros(3))
    with pytest.raises(ValueError, match="must not have cond_video beside a cond_value_range, got"):
        model({"cond_channels": 1}, cond_value_range=(0, 1), cond_standardization=scales)


# What is found in files


@pytest.fixture
def patients(tmp_path):
    """Clips with numbers in a table, and arrays beside them."""
    folder, rng = tmp_path / "echo", np.random.default_rng(0)
    folder.mkdir()
    rows, known = ["path,EF,pressure,site"], []
    for number, clip in enumerate(clips(4)):
        np.save(folder / f"{number}.npy", clip.numpy())
        known.append((rng.uniform(20, 75), rng.normal(101325, 500), 3.0))
        rows.append(",".join([f"{number}.npy", *(f"{value:.6f}" for value in known[-1])]))
    (folder / "clips.csv").write_text("\n".join(rows))
    return folder, np.array(known)


def test_numbers_of_a_table(patients):
    folder, known = patients
    names = ["EF", "pressure", "site"]
    options = {"manifest": "clips.csv", "conditions": {"cond": names}, "cond_standardize": True}
    found = Dataset(folder, 8, 1, 3, exts=None, **options).cond_standardization
    assert found.keys() == {"cond"}
    np.testing.assert_allclose(found["cond"]["mean"], known.mean(axis=0), rtol=1e-6)
    # a constant one has no deviation
    wanted = [*known.std(axis=0)[:2], 1.0]
    np.testing.assert_allclose(found["cond"]["std"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "axes", "name"),
    [
        ("vector", (2,), (0,), "cond"),
        ("frame_vectors", (3, 2), (0, 1), "frame_cond"),
        ("field", (2, 8, 8), (0, 2, 3), "cond_video"),
        ("field", (2, 3, 8, 8), (0, 2, 3, 4), "cond_video"),
    ],
)
def test_arrays_beside_clips(patients, kind, shape, axes, name):
    folder, _ = patients
    rng = np.random.default_rng(0)
    values = rng.normal(300, 5, (4, *shape)).astype(np.float32)
    for number, array in enumerate(values):
        np.save(folder / f"{number}.cond.npy", array)
    options = {"conditions": kind, "cond_standardize": True, "exts": "npy"}
    found = Dataset(folder, 8, 1, 3, **options).cond_standardization[name]
    np.testing.assert_allclose(found["mean"], values.mean(axis=axes, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found["std"], values.std(axis=axes, dtype=float), rtol=1e-5)


def test_a_static_field_and_the_mask(patients):
    folder, _ = patients
    height = np.random.default_rng(0).uniform(0, 3000, (8, 8)).astype(np.float32)
    np.save(folder.parent / "height.npy", height)
    options = {"static_field": folder.parent / "height.npy", "conditions": "mask"}
    dataset = Dataset(folder, 8, 1, 3, exts="npy", cond_standardize=True, **options)
    found = dataset.cond_standardization["cond_video"]
    np.testing.assert_allclose(found["mean"], [height.mean(dtype=float), 0], rtol=1e-6)
    np.testing.assert_allclose(found["std"], [height.std(dtype=float), 1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"cond_standardize must go with numbers: .* got mask; le"):
        Dataset(folder, 8, 1, 3, exts="npy", conditions="mask", cond_standardize=True)


def test_a_training_keeps_it(patients, tmp_path):
    folder, known = patients
    options = {
        **{"manifest": "clips.csv", "conditions": {"cond": ["EF", "pressure"]}, **TRAINING},
        **{"cond_standardize": True, "results_folder": tmp_path / "results"},
    }
    trainer = Trainer(model({"cond_dim": 2}), folder, **options)
    trainer.train()
    own = trainer.model.config["cond_standardization"]
    np.testing.assert_allclose(own["cond"]["mean"], known.mean(axis=0)[:2], rtol=1e-5)
    assert trainer.ema_model.config["cond_standardization"] == own
    assert load_diffusion(tmp_path / "results").config["cond_standardization"] == own
    # a run that goes on with more clips keeps it, too
    table = folder / "clips.csv"
    table.write_text(table.read_text().replace("101", "102"))
    resumed = Trainer(model({"cond_dim": 2}), folder, **options, resume="auto")
    assert resumed.step == 1
    assert resumed.model.config["cond_standardization"] == own
    # but the scale of another model is not that of the clips
    other = model({"cond_dim": 2}, cond_standardization=SCALES)
    options["results_folder"] = tmp_path / "other"
    with pytest.raises(
        ValueError, match=r"must have the model's cond_standardization, .* got .*; gi"
    ):
        Trainer(other, folder, **options)


def test_from_the_command_line(patients, monkeypatch, capsys):
    folder, _ = patients
    monkeypatch.chdir(folder.parent)
    line = "train echo --manifest clips.csv --conditions.cond [EF,pressure] --channels 1 --dim 8 "
    line += "--dim_mults [1] --image_size 8 --num_frames 3 --timesteps 3 --attn_heads 1 "
    line += "--cond_standardize true "
    line += " ".join(f"--{name} {value}" for name, value in TRAINING.items())
    assert main(line.split()) is None, capsys.readouterr().err
    assert (
        main(
            [
                "sample",
                "results",
                "--cond",
                "40",
                "101000",
                "-n",
                "1",
                "-o",
                "a.npy",
                "--steps",
                "2",
            ]
        )
        is None
    )
    assert main(["info", "results"]) is None
    assert "cond_standardization" in capsys.readouterr().out
