"""`Dataset`: length, size, flips, files, parts, padding, units, cache and conditions."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from video_diffusion_pytorch.data.dataset import Dataset, cast_num_frames
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

GOLDEN = Path(__file__).parents[1] / "golden"
GIFS = GOLDEN / "gifs"
RECORDED = torch.load(GOLDEN / "data_0.7.0.pt", weights_only=True)["dataset"]


def ramp_clip(frames=4, height=20, width=30):
    """Grey that grows from left to right, one level per pixel."""
    row = torch.arange(width, dtype=torch.uint8) * 8
    return row.expand(1, frames, height, width).clone()


# Length


def test_cast_num_frames_cuts_and_pads():
    clip = torch.rand(3, 5, 4, 6)
    assert torch.equal(cast_num_frames(clip, frames=5), clip)
    assert torch.equal(cast_num_frames(clip, frames=2), clip[:, :2])
    longer = cast_num_frames(clip, frames=9)
    assert longer.shape == (3, 9, 4, 6)
    assert torch.equal(longer[:, :5], clip)
    assert not longer[:, 5:].any()


@pytest.mark.parametrize(("force", "frames"), [(True, 7), (False, 4)])
def test_force_num_frames(tmp_path, force, frames):
    video_tensor_to_gif(ramp_clip(frames=4), tmp_path / "clip.gif")
    dataset = Dataset(tmp_path, 8, num_frames=7, force_num_frames=force)
    assert dataset[0].shape == (3, frames, 8, 8)


# Size


@pytest.mark.parametrize("size", [7, 20, 33, (20, 12), (5, 40), (40, 5), (20, 30)])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (24, 24), (3, 50)])
def test_every_frame_gets_the_size_asked_for(tmp_path, size, shape):
    clip = torch.full((1, 2, *shape), 255, dtype=torch.uint8)
    video_tensor_to_gif(clip, tmp_path / "clip.gif")
    video = Dataset(tmp_path, size, channels=1, num_frames=2)[0]
    height, width = size if isinstance(size, tuple) else (size, size)
    assert video.shape == (1, 2, height, width)
    assert (video == 1).all()  # covered: no black border comes in


def test_crop_takes_the_middle(tmp_path):
    video_tensor_to_gif(ramp_clip(height=20, width=30), tmp_path / "clip.gif")
    video = Dataset(tmp_path, 20, channels=1, num_frames=4)[0]
    assert (video[0, 0, 0] * 255).round().tolist() == [8 * column for column in range(5, 25)]
    tall = Dataset(tmp_path, (20, 10), channels=1, num_frames=4)[0]
    assert (tall[0, 0, 0] * 255).round().tolist() == [8 * column for column in range(10, 20)]


def test_shape_is_not_distorted(tmp_path):
    square = torch.zeros(1, 2, 40, 80, dtype=torch.uint8)
    square[:, :, 10:30, 30:50] = 255
    video_tensor_to_gif(square, tmp_path / "clip.gif")
    for size in (20, (20, 30), (20, 40)):
        frame = Dataset(tmp_path, size, channels=1, num_frames=2)[0][0, 0] > 0.5
        assert int(frame.any(0).sum()) == int(frame.any(1).sum()) == 10


@pytest.mark.parametrize("key", sorted(RECORDED))
def test_same_clips_as_the_reference(key):
    name, *settings = key.split(":")
    values = {word: int(value) for word, value in (pair.split("=") for pair in settings)}
    dataset = Dataset(GIFS, values["size"], values["channels"], values["frames"])
    clip = dataset[[path.name for path in dataset.paths].index(name)]
    assert clip.dtype == torch.float32
    torch.testing.assert_close(clip, RECORDED[key], rtol=0, atol=1e-6)


# Flip


def test_flip_is_drawn_once_per_clip_and_from_the_seed(tmp_path):
    video_tensor_to_gif(ramp_clip(), tmp_path / "clip.gif")
    dataset = Dataset(tmp_path, (20, 30), channels=1, num_frames=4, horizontal_flip=True)
    plain = Dataset(tmp_path, (20, 30), channels=1, num_frames=4)[0]
    torch.manual_seed(0)
    clips = [dataset[0] for _ in range(200)]
    flipped = [torch.equal(clip, plain.flip(-1)) for clip in clips]
    assert all(f or torch.equal(clip, plain) for f, clip in zip(flipped, clips, strict=True))
    assert 60 < sum(flipped) < 140
    torch.manual_seed(0)
    assert [torch.equal(dataset[0], plain.flip(-1)) for _ in range(200)] == flipped


def test_without_flip_no_random_number_is_drawn():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert Dataset(GIFS, 8)[0].shape == (3, 16, 8, 8)
    assert torch.equal(torch.rand(3), expected)


# Files


def test_files_are_found_in_subfolders_in_any_case_and_sorted(tmp_path):
    for name in ("b.gif", "a/z.GIF", "a/c/y.Gif", "C.gif", "clip.webp", "agif", ".half.gif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(GIFS / "single_1x24x24.gif", path)
    (tmp_path / "folder.gif").mkdir()
    dataset = Dataset(tmp_path, 8)
    assert dataset.paths == sorted(tmp_path / n for n in ("b.gif", "a/z.GIF", "a/c/y.Gif", "C.gif"))
    assert len(dataset) == 4
    assert Dataset(tmp_path, 8, exts=["webp"]).paths == [tmp_path / "clip.webp"]
    assert len(Dataset(tmp_path, 8, exts=[".WEBP", "gif"])) == 5
    assert len(Dataset(tmp_path, 8, exts="gif")) == 4


def test_attributes_of_the_reference(tmp_path):
    dataset = Dataset(str(GIFS), 8, 1, 3)
    assert (dataset.folder, dataset.image_size, dataset.channels) == (str(GIFS), 8, 1)
    with Image.open(GIFS / "single_1x24x24.gif") as image:
        assert dataset.transform(image.convert("L")).shape == (1, 8, 8)
    assert dataset.cast_num_frames_fn(torch.zeros(1, 9, 8, 8)).shape == (1, 3, 8, 8)
    assert "8" in repr(dataset.transform)
    # Both can be replaced
    dataset.transform = lambda frame: torch.zeros(1, 5, 6)
    dataset.cast_num_frames_fn = lambda clip: clip[:, -1:]
    assert dataset[0].shape == (1, 1, 5, 6)


@pytest.mark.parametrize("force", [True, False])
def test_travels_to_worker_processes(force):
    dataset = Dataset(GIFS, 8, force_num_frames=force)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1], dataset[1])


def test_batches():
    loader = DataLoader(Dataset(GIFS, (12, 16), num_frames=5), batch_size=5)
    assert next(iter(loader)).shape == (5, 3, 5, 12, 16)


def test_single_pictures_of_other_formats(tmp_path):
    for number, ending in enumerate(["jpg", "bmp", "tif"]):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"a.{ending}")
    clips = Dataset(tmp_path, 8, 1, 2, exts=["jpg", "bmp", "tif"], as_uint8=True)
    values = {
        path.suffix: clip[0, :, 0, 0].tolist()
        for path, clip in zip(clips.paths, [*clips], strict=True)
    }
    assert values == {".jpg": [0, 0], ".bmp": [40, 0], ".tif": [80, 0]}


# Mistakes


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of videos at .*gone, found none; check"):
        Dataset(tmp_path / "gone", 8)


def test_folder_is_a_file():
    with pytest.raises(NotADirectoryError, match=r"expected a folder of videos at"):
        Dataset(GIFS / "single_1x24x24.gif", 8)


def test_no_clip_in_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"files ending in .gif in .*, got no file at all;"):
        Dataset(tmp_path, 8)
    for name in ("a.mp4", "b.MP4", "README"):
        (tmp_path / name).touch()
    text = r"ending in .gif or .webp in .*, got 2 × .mp4, 1 × no extension; pass other exts"
    with pytest.raises(FileNotFoundError, match=text):
        Dataset(tmp_path, 8, exts=["gif", ".webp"])


@pytest.mark.parametrize("size", [0, -4, 8.0, True, "8", (8,), (8, 0), (8, 8, 8)])
def test_wrong_image_size(size):
    with pytest.raises(ValueError, match=r"image_size must be .* got .*; pass for example 64"):
        Dataset(GIFS, size)


@pytest.mark.parametrize("name", ["num_frames", "channels", "frame_skip"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "2"])
def test_wrong_counts(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got "):
        Dataset(GIFS, 8, **{name: value})


def test_wrong_channels(tmp_path):
    with pytest.raises(ValueError, match=r"channels must be 1 .*, got 2 for .*\.gif; only arrays"):
        Dataset(GIFS, 8, channels=2)
    np.save(tmp_path / "a.npy", np.zeros((2, 1, 8, 8)))
    assert Dataset(tmp_path, 8, channels=2, num_frames=1, exts=None)[0].shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_start": "last"}, "clip_start must be one of first, .* got 'last'; choose"),
        ({"pad": "white"}, "pad must be one of black, .* got 'white'; choose one"),
        (
            {"clip_start": "random", "force_num_frames": False},
            "clip_start and fit_frames must be left out with force_num_frames=False",
        ),
        ({"missing_captions": "x"}, "missing_captions must be one of error, null, got 'x'; choose"),
        ({"fit_frames": "long"}, "one of None, short, all, got 'long'; choose"),
        ({"pad_position": "start"}, "must be one of end, center, got 'start'; choose"),
        (
            {"fit_frames": "short", "force_num_frames": False},
            "clip_start and fit_frames must be left out with force_num_frames=False",
        ),
        (
            {"fit_frames": "all", "clip_start": "random"},
            "left out with fit_frames='all', .* got .*clip_start='random', .*; change",
        ),
        (
            {"fit_frames": "short", "pad": "mask"},
            "pad and pad_position must be left out with fit_frames, got .*; change",
        ),
        (
            {"fit_frames": "all", "pad_position": "center"},
            "pad and pad_position must be left out with fit_frames, got .*; change",
        ),
    ],
)
def test_wrong_options(tmp_path, options, message):
    # before files are searched
    with pytest.raises(ValueError, match=message):
        Dataset(tmp_path / "missing", 8, **options)


# Parts of a file


def counting(frames):
    """Grey frames, each with its number for all its pixels."""
    return torch.arange(frames, dtype=torch.uint8).view(1, -1, 1, 1).repeat(1, 1, 8, 8)


@pytest.fixture
def numbers(tmp_path):
    """A folder with one gif of 20 frames, 0.1 s each; each frame is its number."""
    video_tensor_to_gif(counting(20), tmp_path / "a.gif", duration=100)
    return tmp_path


def shown(clip):
    """The numbers of a clip's frames."""
    return (clip[0, :, 0, 0] * 255).round().int().tolist()


def dataset_of(folder, **options):
    return Dataset(folder, 8, **{"channels": 1, "num_frames": 4, **options})


def test_every_other_frame(numbers):
    assert shown(dataset_of(numbers, frame_skip=3)[0]) == [0, 3, 6, 9]
    assert shown(dataset_of(numbers, fps=5)[0]) == [0, 2, 4, 6]
    assert shown(dataset_of(numbers, fps=20)[0]) == [0, 0, 1, 1]


def test_all_parts(numbers):
    dataset = dataset_of(numbers, clip_start="all", num_frames=6, frame_skip=2, pad="error")
    assert len(dataset) == 1
    dataset = dataset_of(numbers, clip_start="all", num_frames=6)
    assert [shown(clip) for clip in dataset] == [list(range(i, i + 6)) for i in (0, 6, 12)]
    assert dataset.paths == [numbers / "a.gif"] * 3


def test_random_parts_are_drawn_from_the_seed(numbers):
    dataset = dataset_of(numbers, clip_start="random")
    torch.manual_seed(0)
    first = [shown(dataset[0]) for _ in range(40)]
    torch.manual_seed(0)
    assert [shown(dataset[0]) for _ in range(40)] == first
    assert {clip[0] for clip in first} >= {0, 16}
    assert all(clip == list(range(clip[0], clip[0] + 4)) for clip in first)
    drawn = [shown(dataset.draw_clip(0, torch.Generator().manual_seed(3))) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_short_files(numbers):
    assert shown(dataset_of(numbers, num_frames=22)[0]) == [*range(20), 0, 0]
    assert shown(dataset_of(numbers, num_frames=22, pad="repeat")[0]) == [*range(20), 19, 19]
    with pytest.raises(ValueError, match=r"a.gif must have 22 frames for a clip, got 20; remove"):
        dataset_of(numbers, num_frames=22, pad="error")[0]


def test_the_mask_of_real_frames(numbers):
    item = dataset_of(numbers, num_frames=23, pad="mask")[0]
    assert shown(item["video"]) == [*range(20), 19, 19, 19]
    assert item["frame_mask"].tolist() == [True] * 20 + [False] * 3
    item = dataset_of(numbers, num_frames=23, pad="mask", pad_position="center")[0]
    assert shown(item["video"]) == [0, *range(20), 19, 19]
    assert item["frame_mask"].tolist() == [False] + [True] * 20 + [False] * 2
    (numbers / "clips.csv").write_text("path,start,end\na.gif,0.5,\na.gif,,0.2\n")
    for options in ({}, {"clip_start": "random"}, {"clip_start": "all"}, {"frame_skip": 2}):
        for is_cached in (False, True):
            cache = {"cache": numbers / "cache"} if is_cached else {}
            table = {"manifest": numbers / "clips.csv", "pad": "mask"}
            for item in dataset_of(numbers, **table, **options, **cache):
                real = sorted(set(shown(item["video"])))
                step = options.get("frame_skip", 1)
                assert real == [*range(real[0], real[-1] + 1, step)]
                assert item["frame_mask"].tolist() == [i < len(real) for i in range(4)]
    item = dataset_of(numbers, force_num_frames=False, pad="mask")[0]
    assert item["frame_mask"].tolist() == [True] * 20
    (numbers / "a.txt").write_text("numbers")
    item = dataset_of(numbers, num_frames=21, pad="mask", conditions="caption")[0]
    assert (item.keys(), item["cond"]) == ({"video", "frame_mask", "cond"}, "numbers")


def test_short_files_in_the_middle(numbers):
    options = {"num_frames": 23, "pad_position": "center"}
    assert shown(dataset_of(numbers, **options)[0]) == [0, *range(20), 0, 0]
    lowest = dataset_of(numbers, **options, value_range=(-9, 255))[0]
    assert lowest[0, :, 0, 0].tolist() == [-9, *range(20), -9, -9]
    np.save(numbers / "a.npy", np.arange(20.0)[:, None])
    item = dataset_of(numbers, **options, conditions="frame_vectors")[0]
    assert item["frame_cond"][:, 0].tolist() == [0, *range(20), 19, 19]
    # a file that is long enough is cut as ever
    assert shown(dataset_of(numbers, pad_position="center")[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fit_frames": "all", "num_frames": 5}, [0, 5, 10, 14, 19]),
        ({"fit_frames": "short", "num_frames": 5}, [0, 1, 2, 3, 4]),
        ({"fit_frames": "all", "num_frames": 39}, [i // 2 + i % 2 for i in range(39)]),
        ({"fit_frames": "short", "num_frames": 39}, [i // 2 + i % 2 for i in range(39)]),
        ({"fit_frames": "short", "num_frames": 20}, list(range(20))),
        ({"fit_frames": "short", "clip_start": "all", "num_frames": 39, "frame_skip": 19},
         [0] * 19 + [19] * 20),
        ({"fit_frames": "all", "num_frames": 4, "frame_skip": 3}, [0, 6, 12, 18]),
        ({"fit_frames": "all", "num_frames": 4, "fps": 5}, [0, 6, 12, 18]),
        ({"fit_frames": "short", "clip_start": "random", "fps": 1}, [0, 0, 10, 10]),
    ],
    ids=str,
)  # fmt: skip
def test_files_are_resampled_in_time(numbers, options, expected, is_cached):
    np.save(numbers / "a.npy", np.arange(20.0)[:, None])
    cache = {"cache": numbers / "cache"} if is_cached else {}
    item = dataset_of(numbers, conditions="frame_vectors", **options, **cache)[0]
    assert shown(item["video"]) == expected
    # as are the conditions of each frame
    assert item["frame_cond"][:, 0].tolist() == expected


def test_volumes_of_any_depth(tmp_path):
    for depth in (1, 2, 5, 9):
        slices = (
            np.arange(depth, dtype=np.float32).reshape(1, depth, 1, 1).repeat(8, 2).repeat(8, 3)
        )
        np.save(tmp_path / f"{depth}.npy", slices)
        np.save(tmp_path / f"{depth}.cond.npy", 10 * slices)
    options = {"exts": "npy", "axes": "cfhw", "num_frames": 5, "conditions": "field"}
    dataset = dataset_of(tmp_path, **options, fit_frames="all", value_range="fit")
    seen = ([0] * 5, [0, 0, 1, 1, 1], range(5), range(0, 9, 2))
    for item, expected in zip(dataset, seen, strict=True):
        assert item["video"][0, :, 0, 0].tolist() == [*expected]
        assert item["cond_video"][0, :, 0, 0].tolist() == [10 * value for value in expected]
    # the range is that of the slices that are seen
    assert dataset_of(tmp_path, **{**options, "num_frames": 3}, fit_frames="short",
                      value_range="fit").value_range == ((0.0,), (2.0,))  # fmt: skip
    assert dataset.value_range == ((0.0,), (8.0,))
    read = dataset_of(tmp_path, num_frames=3, exts="npy", read_fn=np.load, fit_frames="all",
                      exclude=[], value_range=(0, 8))  # fmt: skip
    assert sorted(clip[0, :, 0, 0].tolist() for clip in read)[-1] == [0, 4, 8]


def test_a_manifest_cuts_files(numbers):
    table = numbers / "clips.csv"
    table.write_text("path,start,end\na.gif,0.5,\na.gif,,0.2\n")
    dataset = dataset_of(numbers, manifest=table)
    assert shown(dataset[0]) == [5, 6, 7, 8]
    assert shown(dataset[1]) == [0, 1, 0, 0]
    windows = dataset_of(numbers, manifest=table, clip_start="all")
    assert [shown(clip)[0] for clip in windows] == [5, 9, 13, 0]
    cached = dataset_of(numbers, manifest=table, cache=numbers / "cache")
    assert [shown(clip) for clip in cached] == [shown(clip) for clip in dataset]


ECHO = """FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split
0X2,78.498,14.88,69.21,112,112,50,2,VAL
0X10,59.5,40.38,98.74,112,112,50,2,TRAIN
0X1,32,27.98,67.93,112,112,50,2,TRAIN
"""


@pytest.fixture
def echo(tmp_path, write_movie):
    """Films in a sub-folder, each as bright as its name, and their list beside it."""
    (tmp_path / "echo" / "Videos").mkdir(parents=True)
    for number in ("1", "2", "10"):
        grey = np.full((16, 16, 3), 10 * int(number, 16), np.uint8)
        options = {"num_frames": 2, "make": lambda _, grey=grey: grey}
        write_movie(f"echo/Videos/0X{number}.avi", "mjpeg", "yuvj420p", **options)
    (tmp_path / "echo" / "FileList.csv").write_text(ECHO)
    return tmp_path / "echo"


def test_a_published_list_as_it_is(echo):
    options = {"num_frames": 2, "manifest": "FileList.csv"}
    train = Dataset(echo, 16, conditions={"cond": ["EF", "ESV"]}, **options)
    assert [path.name for path in train.paths] == ["0X10.avi", "0X1.avi"]
    assert train[0]["cond"].tolist() == torch.tensor([59.5, 40.38]).tolist()
    assert train[1]["cond"].tolist() == torch.tensor([32, 27.98]).tolist()
    shown = [round(item["video"].mean().item() * 255) for item in train]
    assert shown == pytest.approx([160, 10], abs=4)
    [val] = Dataset(echo, 16, conditions={"cond": ["EF"]}, split="val", **options)
    assert val["cond"].tolist() == torch.tensor([78.498]).tolist()


@pytest.mark.parametrize(
    ("conditions", "place"),
    [({"cond": ["EFF"]}, "conditions"), ({"labels": "EFF"}, "conditions or manifest_columns")],
)
def test_a_column_of_conditions_that_is_not_there(echo, conditions, place):
    options = {"manifest": "FileList.csv", "manifest_columns": {"path": "FileName"}}
    message = rf"must have one column EFF .*; correct the column's name in {place}$"
    with pytest.raises(ValueError, match=message):
        Dataset(echo, 16, conditions=conditions, **options)


def test_classes_of_a_chosen_column_agree_between_splits(echo):
    options = {"num_frames": 2, "manifest": "FileList.csv", "conditions": {"labels": "EF"}}
    options |= {"manifest_columns": {"path": "FileName"}}
    train, val = (Dataset(echo, 16, split=split, **options) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("32", "59.5", "78.498")
    assert [item["labels"] for item in (*train, *val)] == [1, 0, 2]
    # and where names in the table have no folder, but their files are in one of their class
    (echo / "Videos" / "0X2.avi").rename(echo / "0X2.avi")
    (echo / "a").mkdir()
    (echo / "0X2.avi").rename(echo / "a" / "0X2.avi")
    options["conditions"] = "label"
    train, val = (Dataset(echo, 16, split=split, **options) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("Videos", "a")
    assert [item["labels"] for item in (*train, *val)] == [0, 0, 1]


def test_columns_without_a_manifest(echo):
    for options in ({"conditions": {"cond": ["EF"]}}, {"manifest_columns": {"path": "EF"}}):
        with pytest.raises(
            ValueError, match=r"columns must be those of a manifest, (or num|got \{).*EF"
        ):
            Dataset(echo, 16, exts=None, **options)


def test_a_split_without_a_manifest():
    with pytest.raises(ValueError, match="split must be one of a manifest, got 'val' without one"):
        Dataset(GIFS, 8, split="val")
    assert len(Dataset(GIFS, 8, split=None)) == len(Dataset(GIFS, 8))


def test_a_file_that_ends_before_its_part_begins(numbers):
    (numbers / "clips.csv").write_text("path,start\na.gif,9\n")
    for clip_start in ("first", "all"):
        dataset = dataset_of(numbers, manifest=numbers / "clips.csv", clip_start=clip_start)
        assert len(dataset) == 1
        with pytest.raises(UnreadableVideoError, match=r"read .*a.gif: expected frames from"):
            dataset[0]


# Mixed formats, arrays and units


def test_arrays_of_any_number_of_channels(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 6, 24, 40)).astype(np.float32) * 100
    np.save(tmp_path / "a.npy", values)
    clip = Dataset(tmp_path, (24, 40), channels=2, num_frames=4, exts=None)[0]
    assert np.array_equal(clip.numpy(), values[:, :4])
    axes = Dataset(tmp_path, (24, 40), channels=6, num_frames=2, exts=None, axes="fchw")[0]
    assert np.array_equal(axes.numpy(), values.transpose(1, 0, 2, 3))


def test_units(tmp_path):
    for index, top in enumerate((5.0, 9.0)):
        values = np.zeros((2, 3, 8, 8), np.float32)
        values[0, 0, 0, 0], values[1, 1, 1, 1] = -1 - index, top
        np.save(tmp_path / f"{index}.npy", values)
    options = {"channels": 2, "num_frames": 5, "exts": None}
    dataset = Dataset(tmp_path, 8, value_range="fit", **options)
    assert dataset.value_range == ((-2.0, 0.0), (0.0, 9.0))
    assert 0 < dataset.value_deviation < 1
    # clips keep their units, and frames that are missing have the least value
    assert dataset[1].min() == -2
    assert dataset[1][:, 4, 0, 0].tolist() == [-2, 0]
    dataset = Dataset(tmp_path, 8, value_range=(-5, 10), **options)
    assert dataset.value_range == ((-5.0, -5.0), (10.0, 10.0))
    assert dataset.value_deviation is None


def test_rounding_makes_no_range_of_a_constant_channel(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 3, 20, 30)))
    with pytest.raises(ValueError, match=r"values that differ in each channel, got \[0.99.*; give"):
        Dataset(tmp_path, 16, channels=1, exts="npy", axes="cfhw", value_range="fit")


def test_units_that_cannot_be_found(tmp_path):
    options = {"channels": 1, "num_frames": 1, "exts": ["npy"], "axes": "cfhw"}
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"values that differ in each channel, got .*; give the"):
        Dataset(tmp_path, 8, value_range="fit", **options)
    for name in "ab":
        (tmp_path / f"{name}.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"can be read, got none; repair .* an empty file"):
        Dataset(tmp_path, 8, value_range="fit", **options)


def test_uint8(numbers):
    clip = dataset_of(numbers, as_uint8=True)[0]
    assert clip.dtype == torch.uint8
    assert torch.equal(clip.float() / 255, dataset_of(numbers)[0])
    assert torch.equal(dataset_of(numbers, value_range=(0, 255))[0], clip.float())


def test_a_function_that_reads(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(range(48)))

    def read(path):
        return np.frombuffer(path.read_bytes(), np.uint8).reshape(3, 4, 2, 2)

    dataset = Dataset(tmp_path, 2, 3, 4, exts=["raw"], read_fn=read, as_uint8=True)
    assert dataset[0].flatten().tolist() == list(range(48))
    with pytest.raises(ValueError, match=r"cache must be left out with read_fn, .*; change"):
        Dataset(tmp_path, 2, exts=["raw"], read_fn=read, cache=tmp_path / "cache")


# The cache


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_start": "random"},
        {"clip_start": "all", "num_frames": 3},
        {"frame_skip": 2, "clip_start": "random"},
        {"fps": 7, "num_frames": 20},
        {"crop": "random", "horizontal_flip": True, "vertical_flip": True},
        {"num_frames": 30, "pad": "repeat"},
        {"num_frames": 30, "pad_position": "center"},
        {"num_frames": 30, "fit_frames": "short"},
        {"num_frames": 5, "fit_frames": "all"},
        {"as_uint8": True},
    ],
    ids=str,
)
def test_cached_clips_are_the_same(tmp_path, options):
    torch.manual_seed(0)
    for name in "ab":
        video_tensor_to_gif(torch.rand(1, 12, 16, 24), tmp_path / f"{name}.gif")
    plain = dataset_of(tmp_path, **options)
    cached = dataset_of(tmp_path, cache=tmp_path / "cache", **options)
    assert (plain.is_cached, cached.is_cached) == (False, True)
    assert len(plain) == len(cached)
    for index in range(len(plain)):
        clips = []
        for dataset in (plain, cached):
            torch.manual_seed(index)
            clips.append(dataset[index])
        assert torch.equal(*clips)


def test_the_cache_is_used(numbers, monkeypatch):
    dataset_of(numbers, cache=numbers / "cache")
    monkeypatch.setattr("video_diffusion_pytorch.data.dataset.open_video", None)
    dataset = dataset_of(numbers, cache=numbers / "cache")
    first = dataset[0]
    first.zero_()  # of no effect on the cache
    assert shown(dataset[0]) == [0, 1, 2, 3]


def test_a_cache_knows_the_damaged_files(numbers):
    (numbers / "b.gif").write_bytes(b"GIF89a")
    dataset = dataset_of(numbers, cache=numbers / "cache")
    with pytest.raises(UnreadableVideoError, match=r"b\.gif"):
        dataset[1]


def test_a_cache_and_a_transform(numbers):
    dataset = dataset_of(numbers, cache=numbers / "cache")
    dataset.transform = repr
    with pytest.raises(ValueError, match=r"transform must stay as it is with a cache, got .*; "):
        dataset[0]


# Conditions


def test_items_with_conditions(numbers):
    (numbers / "a.txt").write_text("numbers")
    dataset = dataset_of(numbers, conditions=("caption", lambda path: {"labels": 7}))
    item = dataset[0]
    assert shown(item["video"]) == [0, 1, 2, 3]
    assert (item["cond"], item["labels"]) == ("numbers", 7)
    assert dataset.captions == ["numbers"]


def test_arrays_follow_the_clip(numbers):
    np.save(numbers / "a.npy", np.arange(40).reshape(20, 2))
    options = {"conditions": "frame_vectors", "frame_skip": 2}
    item = dataset_of(numbers, **options)[0]
    assert item["frame_cond"][:, 0].tolist() == [0, 4, 8, 12]
    item = dataset_of(numbers, num_frames=12, **options)[0]
    assert item["frame_cond"][-3:, 0].tolist() == [36, 36, 36]
    item = dataset_of(numbers, conditions="frame_vectors", fps=5, cache=numbers / "cache")[0]
    assert item["frame_cond"][:, 0].tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("is_still", [True, False])
def test_fields_are_cropped_and_mirrored_like_the_clip(tmp_path, is_still):
    values = torch.randint(256, (1, 5, 8, 20), dtype=torch.uint8)
    video_tensor_to_gif(values, tmp_path / "a.gif")
    field = (values[:, 0] if is_still else values).float() / 255
    np.save(tmp_path / "a.npy", field.numpy())
    options = {"crop": "random", "horizontal_flip": True, "vertical_flip": True}
    dataset = dataset_of(tmp_path, num_frames=7, pad="repeat", conditions="field", **options)
    for seed in range(12):
        item = dataset.draw_clip(0, torch.Generator().manual_seed(seed))
        expected = item["video"][:, 0] if is_still else item["video"]
        assert torch.allclose(item["cond_video"], expected)


def test_frames_of_different_sizes_cannot_be_cut_at_random(tmp_path):
    for name, size in (("1.png", (20, 10)), ("2.png", (30, 10))):
        Image.new("L", size, 100).save(tmp_path / name)
    assert dataset_of(tmp_path, exts=None)[0].shape == (1, 4, 8, 8)
    message = r"expected frames of one shape, got .*; use fit='stretch', or fit"
    for option in ({"crop": "random"}, {"fit": "contain"}):
        with pytest.raises(UnreadableVideoError, match=message):
            dataset_of(tmp_path, exts=None, **option)[0]


def test_settings_tell_how_files_become_clips(tmp_path):
    video_tensor_to_gif(ramp_clip(), tmp_path / "clip.gif")
    plain = Dataset(tmp_path, (8, 6), num_frames=2, channels=1).settings
    assert plain == {
        "frames": 2, "channels": 1, "split": None, "clip_start": "first", "pad": "black",
        "flips": [False, False], "frame_skip": 1, "fps": None, "size": [8, 6], "fit": "cover",
        "crop": "center", "filter": "bilinear, antialiased",
    }  # fmt: skip
    other = Dataset(tmp_path, 8, num_frames=2, frame_skip=2, fit="contain", vertical_flip=True)
    changed = {name for name, value in other.settings.items() if plain[name] != value}
    assert changed == {"channels", "flips", "frame_skip", "size", "fit"}
    stretched = Dataset(tmp_path, (8, 6), num_frames=2, channels=1, fit_frames="all").settings
    assert stretched == {**plain, "fit_frames": "all"}
    centred = Dataset(tmp_path, (8, 6), num_frames=2, channels=1, pad_position="center").settings
    assert centred == {**plain, "pad_position": "center"}


# Odd files


@pytest.mark.parametrize("ending", ["gif", "npy"])
def test_names_as_long_as_file_systems_allow(tmp_path, ending):
    folder = tmp_path / "clips"
    folder.mkdir()
    name = "x" * 251
    if ending == "gif":
        video_tensor_to_gif(ramp_clip(), folder / f"{name}.gif")
    else:
        np.save(folder / f"{name}.npy", ramp_clip().numpy())
    (folder / f"{name}.txt").write_text("a ramp")
    options = {"channels": 1, "num_frames": 4, "exts": None, "conditions": "caption"}
    plain = Dataset(folder, 16, **options)[0]
    cached = Dataset(folder, 16, **options, cache=tmp_path / "cache")[0]
    assert plain["cond"] == cached["cond"] == "a ramp"
    assert torch.equal(plain["video"], cached["video"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names exist on Unix only")
@pytest.mark.parametrize(
    "options", [{}, {"clip_start": "all"}, {"cache": "cache"}, {"read_fn": np.load}]
)
def test_a_pipe_is_a_file_that_cannot_be_read(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "clips"
    (folder / "stills").mkdir(parents=True)
    np.save(folder / "a.npy", np.zeros((1, 4, 16, 16), np.float32))
    os.mkfifo(folder / "b.npy")
    if "read_fn" not in options:
        for number in range(2):
            os.mkfifo(folder / "stills" / f"{number}.png")
    dataset = Dataset(folder, 16, channels=1, num_frames=4, exts=None, **options)
    assert dataset[0].shape == (1, 4, 16, 16)
    assert len(dataset) == 2 if "read_fn" in options else 3
    for index in range(1, len(dataset)):
        with pytest.raises(UnreadableVideoError, match="expected a regular file, got a pipe"):
            dataset[index]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names exist on Unix only")
def test_a_pipe_beside_a_clip_is_no_condition(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1, 4, 16, 16), np.float32))
    for name in ("a.txt", "a.cond.npy"):
        os.mkfifo(tmp_path / name)
    options = {"channels": 1, "num_frames": 4, "exts": ["npy"]}
    for kind in ("caption", "vector"):
        with pytest.raises(FileNotFoundError, match=f"expected (a|the) {kind}"):
            Dataset(tmp_path, 16, **options, conditions=kind)
