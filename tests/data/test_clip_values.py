"""Values of clips and their range, for pictures and arrays, with and without a cache."""

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.dataset import Dataset, PictureFolder, SingleFrames
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif


@pytest.fixture(params=["plain", "cached"])
def dataset_of(request, tmp_path):
    """Makes datasets of the folder `clips`, with and without a cache."""
    (tmp_path / "clips").mkdir()

    def make(**options):
        cache = tmp_path / "cache" if request.param == "cached" else None
        return Dataset(tmp_path / "clips", **{"channels": 1, "cache": cache, **options})

    make.folder = tmp_path / "clips"
    return make


@pytest.mark.parametrize("value_range", [(-5, 300), "fit"])
@pytest.mark.parametrize("kind", ["pictures", "bytes", "floats"])
def test_what_is_filled_up_has_the_least_value(dataset_of, kind, value_range):
    values = torch.randint(20, 200, (1, 2, 8, 16), dtype=torch.uint8)
    if kind == "pictures":
        video_tensor_to_gif(values, dataset_of.folder / "a.gif")
    else:
        stored = values if kind == "bytes" else values.float()
        np.save(dataset_of.folder / "a.npy", stored.numpy())
    options = {"image_size": 16, "num_frames": 3, "exts": None, "fit": "contain"}
    dataset = dataset_of(value_range=value_range, **options)
    low = -5 if value_range != "fit" else int(values.min())
    if value_range == "fit":
        assert dataset.value_range == ((low,), (int(values.max()),))
    clip = dataset[0]
    assert clip.dtype == torch.float32
    assert torch.equal(clip[:, :2, 4:12], values.float())
    for filled in (clip[:, :, :4], clip[:, :, 12:], clip[:, 2]):
        assert filled.unique().tolist() == [low]
    # without a range it is black
    plain = dataset_of(**options)[0]
    assert plain[:, :, :4].unique().tolist() == [0]


def test_the_range_is_that_of_what_training_sees(dataset_of):
    values = np.arange(12, dtype=np.float32).reshape(1, 12, 1, 1).repeat(8, 2).repeat(8, 3)
    values[..., 0, 0] = 0.5
    np.savez(dataset_of.folder / "a.npz", video=values, fps=2.0)
    options = {"image_size": 8, "num_frames": 4, "exts": ["npz"], "value_range": "fit"}

    def found(**more):
        [low], [high] = dataset_of(**{**options, **more}).value_range
        return low, high

    assert found() == (0, 3)
    assert found(frame_skip=2) == (0, 6)
    assert found(clip_start="random") == (0, 11)
    assert found(clip_start="all", num_frames=5) == (0, 9)
    assert found(force_num_frames=False) == (0, 11)
    table = dataset_of.folder / "clips.csv"
    table.write_text("path,start,end\na.npz,1,2.5\na.npz,3.5,\n")
    assert found(manifest=table) == (0.5, 10)
    assert found(manifest=table, num_frames=1) == (0.5, 7)
    assert found(manifest=table, clip_start="random") == (0.5, 11)


@pytest.mark.parametrize("clip_start", ["first", "all"])
def test_nan_and_infinity_are_refused(dataset_of, clip_start):
    for name, value in (("a", 2.0), ("b", np.nan), ("c", np.inf)):
        values = np.ones((1, 4, 16, 16), np.float32)
        values[0, 1, 3, 3] = value
        np.save(dataset_of.folder / f"{name}.npy", values)
    options = {"image_size": 8, "num_frames": 4, "exts": ["npy"], "clip_start": clip_start}
    dataset = dataset_of(value_range="fit", **options)
    assert 1 < dataset.value_range[1][0] < 2  # at the size of the clips
    assert dataset[0].isfinite().all()
    for index, name in ((1, "b"), (2, "c")):
        message = rf"cannot read .*{name}.npy: expected finite .*, got 1 NaN or infinite ones of"
        with pytest.raises(UnreadableVideoError, match=message):
            dataset[index]


def test_nan_from_a_transform_is_refused(tmp_path):
    video_tensor_to_gif(torch.rand(1, 2, 8, 8), tmp_path / "a.gif")
    dataset = Dataset(tmp_path, 8, channels=1, num_frames=2)
    dataset.transform = lambda frame: torch.full((1, 8, 8), float("nan"))
    with pytest.raises(UnreadableVideoError, match=r"a.gif: .* got 128 NaN or infinite ones"):
        dataset[0]


# Pictures of more than 8 bits


@pytest.mark.parametrize(
    "options", [{}, {"fit": "contain"}, {"fit": "stretch"}, {"is_cached": True}]
)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_deep_stills_are_as_arrays(tmp_path, ending, options):
    stored = np.random.default_rng(0).integers(0, 4096, (3, 20, 30), np.uint16)
    for name in ("stills/clip", "arrays"):
        (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / "arrays" / "clip.npy", stored[None])
    for number, frame in enumerate(stored):
        Image.fromarray(frame).save(tmp_path / "stills" / "clip" / f"f{number}.{ending}")
    options = dict(options)
    is_cached = options.pop("is_cached", False)

    def dataset(name, size, **more):
        cache = {"cache": tmp_path / f"{name}.cache"} if is_cached else {}
        options_of = {"exts": None, "num_frames": 3, "channels": 1, **options, **cache, **more}
        return Dataset(tmp_path / name, size, **options_of)

    for value_range in (None, (0, 65535), "fit"):
        stills = dataset("stills", (8, 10), value_range=value_range)
        arrays = dataset("arrays", (8, 10), value_range=value_range)
        assert stills.value_range == arrays.value_range
        assert stills[0].dtype == torch.float32
        assert torch.equal(stills[0], arrays[0])
        drawn = SingleFrames(stills)[0]
        assert any(torch.equal(drawn, stills[0][:, index : index + 1]) for index in range(3))
    pictures = PictureFolder(tmp_path / "stills", (20, 30), 1)
    for number in range(3):
        assert np.array_equal(pictures[number][0, 0].numpy(), stored[number])


def test_deep_stills_of_different_sizes_are_scaled_apart(tmp_path):
    (tmp_path / "clip").mkdir()
    for number, side in enumerate((8, 16)):
        level = np.full((side, side), 1000 * number + 500, np.uint16)
        Image.fromarray(level).save(tmp_path / "clip" / f"f{number}.png")
    clip = Dataset(tmp_path, 8, num_frames=2, channels=3, exts=None)[0]
    assert clip.shape == (3, 2, 8, 8)
    assert torch.equal(clip[:, :, 4, 4], torch.tensor([[500.0, 1500.0]]).expand(3, -1))


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
@pytest.mark.parametrize("tenths", [[1, 1, 10], [10, 1], [1, 2, 3]])
def test_each_frame_is_seen_for_as_long_as_it_is_shown(tmp_path, ending, tenths):
    first, *rest = [Image.new("RGB", (4, 4), (60 * number, 0, 0)) for number in range(len(tenths))]
    times = [100 * tenth for tenth in tenths]
    options = {"save_all": True, "append_images": rest, "duration": times, "lossless": True}
    first.save(tmp_path / f"a.{ending}", **options)
    dataset = Dataset(tmp_path, 4, num_frames=9, force_num_frames=False, exts=ending, fps=10)
    seen = (dataset[0][0, :, 0, 0] * 255 / 60).round().int().tolist()
    assert seen == [number for number, tenth in enumerate(tenths) for _ in range(tenth)]
