"""Single frames of clips, and pictures that are clips of one frame."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.dataset import Dataset, PictureFolder, SingleFrames
from video_diffusion_pytorch.data.video_file import UnreadableVideoError, video_tensor_to_gif

SIZE = 8


def counting_clip(frames):
    """Frame i has the grey value 20 (i + 1)."""
    return (torch.arange(1, frames + 1) * 20 / 255).view(1, -1, 1, 1).expand(1, -1, SIZE, SIZE)


def write_clip(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    video_tensor_to_gif(counting_clip(frames), path)


def write_picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (SIZE + 2, SIZE), value).save(path)


def clips(folder, **options):
    return Dataset(folder, SIZE, channels=1, as_uint8=True, **{"num_frames": 4, **options})


def numbers(frames, index=0, draws=60):
    """The numbers of the frames that are drawn."""
    drawn = [frames.draw_clip(index, torch.Generator().manual_seed(i)) for i in range(draws)]
    drawn = [item["video"] if isinstance(item, dict) else item for item in drawn]
    assert {tuple(item.shape) for item in drawn} == {(1, 1, SIZE, SIZE)}
    return {int(item[0, 0, 0, 0]) // 20 - 1 for item in drawn}


def test_pictures_of_films_may_stay_as_they_are_stored(write_movie):
    path = write_movie("clip.mp4", num_frames=1, shape=Fraction(2))
    for square, edge in ((True, 20), (False, 8)):  # black rows above the 64 x 24 or 64 x 48 pixels
        folder = PictureFolder(path.parent, 64, fit="contain", square_pixels=square)
        picture = folder[0][0, 0] > 0.1
        rows = picture.any(1).nonzero()
        assert int(rows[0]) == pytest.approx(edge, abs=1)


# Frames of clips


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"frame_skip": 2}, {0, 2, 4, 6}),
        ({"clip_start": "random"}, set(range(9))),
        ({"force_num_frames": False}, set(range(9))),
        # what is filled up is no frame
        ({"num_frames": 20, "pad": "repeat"}, set(range(9))),
        ({"num_frames": 20, "clip_start": "random"}, set(range(9))),
        ({"num_frames": 20, "pad": "mask", "pad_position": "center"}, set(range(9))),
        ({"num_frames": 20, "fit_frames": "short"}, set(range(9))),
        ({"fit_frames": "short"}, {0, 1, 2, 3}),
        ({"fit_frames": "all"}, set(range(9))),
    ],
)
@pytest.mark.parametrize("is_cached", [False, True])
def test_each_frame_of_a_clip_is_drawn_and_no_other(tmp_path, options, expected, is_cached):
    write_clip(tmp_path / "clips" / "a.gif", 9)
    if is_cached:
        options = {**options, "cache": tmp_path / "cache"}
    frames = SingleFrames(clips(tmp_path / "clips", **options))
    assert numbers(frames) == expected


def test_frames_of_one_part_of_a_file(tmp_path):
    write_clip(tmp_path / "a.gif", 9)
    frames = SingleFrames(clips(tmp_path, clip_start="all"))
    assert len(frames) == 2
    assert [numbers(frames, index) for index in range(2)] == [{0, 1, 2, 3}, {4, 5, 6, 7}]


def test_frames_of_a_part_that_a_manifest_names(tmp_path):
    write_clip(tmp_path / "a.gif", 9)
    (tmp_path / "list.csv").write_text("path,start,end\na.gif,0.36,0.6\n")
    frames = SingleFrames(clips(tmp_path, manifest=tmp_path / "list.csv", num_frames=20))
    with_times = clips(tmp_path, manifest=tmp_path / "list.csv", num_frames=20)[0]
    shown = {int(value) // 20 - 1 for value in with_times[0, :, 0, 0]} - {-1}
    assert len(shown) < 9
    assert numbers(frames) == shown


def test_no_other_frame_is_decoded(tmp_path):
    write_clip(tmp_path / "a.gif", 9)
    dataset = clips(tmp_path)
    decoded = []
    dataset.transform = lambda frame: (decoded.append(frame), torch.zeros(1, SIZE, SIZE))[1]
    SingleFrames(dataset)[0]
    assert len(decoded) == 1
    # the clips themselves are as before
    assert dataset[0].shape == (1, 4, SIZE, SIZE)


def test_a_frame_has_the_vector_and_the_field_of_its_place(tmp_path):
    write_clip(tmp_path / "a.gif", 9)
    np.save(tmp_path / "a.npy", np.arange(9, dtype=np.float32)[:, None])
    frames = SingleFrames(clips(tmp_path, conditions="frame_vectors"))
    for seed in range(20):
        item = frames.draw_clip(0, torch.Generator().manual_seed(seed))
        number = int(item["video"][0, 0, 0, 0]) // 20 - 1
        assert item["frame_cond"].tolist() == [[number]]
    np.save(tmp_path / "a.npy", np.arange(9, dtype=np.float32)[None, :, None, None].repeat(8, 2))
    frames = SingleFrames(clips(tmp_path, conditions="field"))
    for seed in range(20):
        item = frames.draw_clip(0, torch.Generator().manual_seed(seed))
        number = int(item["video"][0, 0, 0, 0]) // 20 - 1
        assert item["cond_video"].shape == (1, 1, SIZE, SIZE)
        assert item["cond_video"].unique().tolist() == [number]


def test_captions_classes_and_flips_are_those_of_the_clips(tmp_path):
    write_clip(tmp_path / "clips" / "dogs" / "a.gif", 9)
    (tmp_path / "clips" / "dogs" / "a.txt").write_text("a dog")
    options = {"conditions": ["caption", "label"], "horizontal_flip": True}
    frames = SingleFrames(clips(tmp_path / "clips", **options))
    item = frames.draw_clip(0, torch.Generator().manual_seed(0))
    assert (item["cond"], item["labels"]) == ("a dog", 0)
    assert frames.horizontal_flip


# Pictures


def test_every_picture_counts_by_itself(tmp_path):
    names = ["1.png", "2.png", "3.jpg", "more/4.jpeg", "more/5.bmp", "more/6.tif", "more/7.webp"]
    for number, name in enumerate(names):
        write_picture(tmp_path / name, 20 * (number + 1))
    write_clip(tmp_path / "clip.gif", 5)
    pictures = PictureFolder(tmp_path, SIZE, channels=1, as_uint8=True)
    assert [path.relative_to(tmp_path).as_posix() for path in pictures.paths] == [
        "1.png",
        "2.png",
        "3.jpg",
        "clip.gif",
        *names[3:],
    ]
    for index, expected in zip([0, 1, 2, 4, 5, 6, 7], range(7), strict=True):
        picture = pictures[index]
        assert picture.shape == (1, 1, SIZE, SIZE)
        assert picture.dtype == torch.uint8
        # jpeg and webp round
        assert abs(int(picture[0, 0, 0, 0]) - 20 * (expected + 1)) <= 2
    assert numbers(pictures, index=3) == {0, 1, 2, 3, 4}


def test_pictures_have_captions_and_the_classes_of_the_clips(tmp_path):
    write_picture(tmp_path / "cats" / "a.png", 10)
    write_picture(tmp_path / "cows" / "b.jpg", 20)
    write_picture(tmp_path / "c.png", 30)
    (tmp_path / "cats" / "a.txt").write_text("a cat")
    classes = ("birds", "cats")
    pictures = PictureFolder(tmp_path, SIZE, 1, has_captions=True, class_names=classes)
    assert [(item["cond"], item["labels"]) for item in map(pictures.__getitem__, range(3))] == [
        (None, -1),
        ("a cat", 1),
        (None, -1),
    ]
    assert pictures.captions == ["a cat"]
    plain = PictureFolder(tmp_path, SIZE, 1, class_names=classes)[1]
    assert plain.keys() == {"video", "labels"}
    assert plain["video"].dtype == torch.float32


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UnreadableVideoError, match=r"a\.jpg"):
        PictureFolder(tmp_path, SIZE)[0]


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(FileNotFoundError, match=r"expected files ending in .*\.jpg.*got 1 × \.md"):
        PictureFolder(tmp_path, SIZE)
