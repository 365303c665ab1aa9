"""What the command line says a sample should show."""

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, text
from video_diffusion_pytorch.cli.sample import read_conditions, repeat
from video_diffusion_pytorch.data.write_video import write_video


def diffusion(given_frames=0, **unet):
    network = Unet3D(dim=4, dim_mults=(1, 2), channels=1, attn_heads=1, **unet)
    return GaussianDiffusion(
        network, image_size=8, num_frames=3, timesteps=2, given_frames=given_frames
    )


def read(model, class_names=(), **options):
    return read_conditions(model, class_names, options)


def test_arrays_of_all_kinds(tmp_path):
    shapes = {"cond": (3, 5), "frame_cond": (3, 3, 2), "cond_video": (1, 2, 8, 8)}
    for name, shape in shapes.items():
        np.save(tmp_path / f"{name}.npy", np.ones(shape))
    model = diffusion(cond_dim=5, frame_cond_dim=2, cond_channels=2)
    files = {name: str(tmp_path / f"{name}.npy") for name in shapes}
    found = read(model, **files)
    assert {name: value.shape for name, value in found.items()} == shapes
    assert all(value.dtype == torch.float32 for value in found.values())
    model.sample(**{name: repeat(value, 1, 3) for name, value in found.items()}, progress=False)


def test_captions_and_arrays_for_a_network_of_states(tmp_path):
    np.save(tmp_path / "cond.npy", np.ones((2, 7, 5)))
    model = diffusion(cond_dim=5, num_text_tokens=2)
    found = read(model, cond=str(tmp_path / "cond.npy"))
    assert found["cond"].shape == (2, 7, 5)
    model.sample(**found, progress=False)
    found = read(model, text=["a", "a longer one"])
    assert found == {"cond": ["a", "a longer one"]}
    text.set_text_encoder(lambda captions: torch.ones(len(captions), len(captions[0]), 5))
    captions, negative = repeat(found["cond"], 2, 2), repeat(["blurry"], 2, 2)
    videos = model.sample(captions, cond_scale=2.0, negative_cond=negative, progress=False)
    text.set_text_encoder()
    assert videos.shape == (4, 1, 3, 8, 8)


def test_first_frames_of_a_file_or_a_folder(tmp_path):
    for index in range(2):
        write_video(torch.full((1, 4, 16, 24), index / 2), tmp_path / f"{index}.gif")
    model = diffusion(given_frames=2, cond_channels=2)
    one = read(model, first_frames=str(tmp_path / "1.gif"))["first_frames"]
    assert one.shape == (1, 1, 2, 8, 8)
    assert one.unique().tolist() == [128]
    both = read(model, first_frames=str(tmp_path))["first_frames"]
    assert both.shape == (2, 1, 2, 8, 8)
    write_video(torch.zeros(1, 1, 8, 8), tmp_path / "0.gif")
    with pytest.raises(ValueError, match=r"must have 2 frames, got 1 in .*0.gif; give a longer"):
        read(model, first_frames=str(tmp_path))


def test_first_frames_of_bytes_and_floats(tmp_path):
    write_video(torch.ones(1, 2, 8, 8), tmp_path / "0.gif")
    write_video(torch.full((1, 2, 8, 8), 0.5), tmp_path / "1.npy")
    model = diffusion(given_frames=1, cond_channels=2)
    frames = read(model, first_frames=str(tmp_path))["first_frames"]
    assert frames[:, 0, 0, 0, 0].tolist() == [1, 0.5]
    # in units of its own, a byte is its value
    model.set_value_range((0, 255))
    frames = read(model, first_frames=str(tmp_path))["first_frames"]
    assert frames[:, 0, 0, 0, 0].tolist() == [255, 0.5]


def test_bytes_of_a_field_stay_bytes(tmp_path):
    np.save(tmp_path / "x.npy", np.full((1, 2, 8, 8), 255, np.uint8))
    model = diffusion(cond_channels=2)
    found = read(model, cond_video=str(tmp_path / "x.npy"))["cond_video"]
    assert found.dtype == torch.uint8
    np.save(tmp_path / "x.npy", np.full((1, 2), "a"))
    with pytest.raises(
        ValueError, match=r"--cond_video must be a .npy of numbers, got .*x.npy \(val"
    ):
        read(model, cond_video=str(tmp_path / "x.npy"))


def test_labels_by_name_and_number():
    model = diffusion(num_classes=3)
    found = read(model, ("x", "y", "z"), labels=["z", "0"])
    assert found["labels"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="among numbers, as the checkpoint has no names of class"):
        read(model, labels=["z"])


def test_captions_and_vectors_exclude_each_other():
    model = diffusion(cond_dim=4)
    with pytest.raises(ValueError, match=r"only one of --text and --cond .* got both; remove one"):
        read(model, text=["a"], cond="a.npy")


def test_missing_and_damaged_files(tmp_path):
    model = diffusion(cond_dim=4)
    with pytest.raises(FileNotFoundError, match=r"x\.npy"):
        read(model, cond=str(tmp_path / "x.npy"))
    for content in ("no array", ""):
        (tmp_path / "x.npy").write_text(content)
        with pytest.raises(ValueError, match=r"--cond must be a .npy of numbers, got .*x.npy \("):
            read(model, cond=str(tmp_path / "x.npy"))


def test_conditions_that_the_model_was_not_trained_with():
    with pytest.raises(ValueError, match="trained with, none, got --labels; correct the options"):
        read(diffusion(), labels=["0"])
    with pytest.raises(ValueError, match="trained with, --labels, got none; correct the options"):
        read(diffusion(num_classes=2))
    assert read(diffusion()) == {}


def test_a_row_is_repeated_for_each_video():
    assert repeat(["a", "b"], 2, 2) == ["a", "a", "b", "b"]
    assert repeat(torch.arange(2), 2, 2).tolist() == [0, 0, 1, 1]
    assert repeat(["a"], 2, 3) == ["a"] * 6
