"""A folder of numbered stills is one video."""

import numpy as np
import pytest
from PIL import Image

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.frame_folder import (
    FrameFolderReader,
    is_frame_folder,
    sort_by_counter,
    stills_among,
)
from video_diffusion_pytorch.data.manifest import find_clips


def write_stills(folder, names):
    for number, name in enumerate(names):
        Image.new("L", (6, 4), 10 * number).save(folder / name)


def numbers(pictures):
    return [int(np.asarray(picture).flat[0]) // 10 for picture in pictures]


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    names = [f"frame{number}.png" for number in (0, 2, 9, 10, 11, 100)]
    write_stills(tmp_path, names)
    (tmp_path / ".DS_Store").write_bytes(b"hidden files do not count")
    (tmp_path / "Thumbs.db").write_bytes(b"nor do those of file managers")
    (tmp_path / "labels.csv").write_bytes(b"nor notes")
    with FrameFolderReader(tmp_path) as reader:
        assert (reader.num_frames, reader.channels, reader.fps, reader.times) == (6, 1, None, None)
        assert numbers(reader.pictures(range(100))) == [0, 1, 2, 3, 4, 5]
        assert numbers(reader.pictures([1, 4])) == [1, 4]
    with FrameFolderReader(tmp_path, channels=3) as reader:
        assert {picture.mode for picture in reader.pictures(range(2))} == {"RGB"}


@pytest.mark.parametrize(
    ("names", "is_one_video"),
    [
        (["a1.png", "a2.png"], True),
        (["a1.png"], True),
        (["001.PNG", "002.PNG"], True),
        (["run7_000_left.jpg", "run7_001_left.jpg"], True),
        ([], False),
        ([".hidden1.png"], False),
        (["a1.png", "b2.png"], False),
        (["a1_left.png", "a2_right.png"], False),
        (["a1.png", "a2.jpg"], False),
        (["a1.png", "a01.png"], False),
        (["a1.png", "a2.png", "notes.txt", "Thumbs.db", "desktop.ini", "x.JSON"], True),
        (["a1.png", "a2.png", "a.csv", "README.md", "a1.xml"], True),
        (["a1.png", "a1.txt", "a2.png"], False),  # a caption for each picture
        (["notes.txt"], False),
        (["a1.png", "notes.doc"], False),
        (["a1.gif", "a2.gif"], False),
        (["a1.mp4"], False),
        (["a.png"], False),
        (["img_640x480_1.png", "img_640x480_2.png"], True),
        (["1_of_2.png", "2_of_2.png"], True),
    ],
)
def test_which_folders_are_videos(tmp_path, names, is_one_video):
    for name in names:
        (tmp_path / name).touch()
    assert is_frame_folder(tmp_path, names) is is_one_video


@pytest.mark.parametrize(
    "names",
    [
        ["img_640x480_9.png", "img_640x480_10.png", "img_640x480_11.png"],
        ["f_9_640x480.png", "f_10_640x480.png", "f_11_640x480.png"],
        ["9_of_3.png", "10_of_3.png", "11_of_3.png"],
        ["2024-01-05_cam2_9.png", "2024-01-05_cam2_10.png", "2024-01-05_cam2_11.png"],
        # other numbers that differ: a time that grows, too, delays, sizes, a time without order
        ["f_1_t99.5.png", "f_2_t100.0.png", "f_3_t100.5.png"],
        ["t3_f1.png", "t3_f2.png", "t4_f3.png"],
        ["f_00_delay-0.1s.png", "f_01_delay-0.04s.png", "f_02_delay-0.1s.png"],
        ["f_5_640x480.png", "f_10_320x240.png", "f_15_640x480.png"],
        ["f_1_loss900.png", "f_2_loss20.png", "f_3_loss500.png"],
        ["loss900_f_7.png", "loss20_f_8.png", "loss500_f_9.png"],
        ["f_10_x7.png", "f_20_x3.png", "f_30_x9.png"],
        # seconds, and counters behind a version
        ["t_0.05.png", "t_0.1.png", "t_0.15.png"],
        ["t_0.95.png", "t_1.0.png", "t_1.05.png"],
        ["shot2.9.png", "shot2.10.png", "shot2.11.png"],
        # no constant step, but nothing that speaks against it
        ["f_1_t10.png", "f_5_t12.png", "f_6_t12.png"],
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_number_that_counts_up_gives_the_order(tmp_path, names, seed):
    mixed = sorted(names, key=lambda name: hash((name, seed)))
    assert sort_by_counter(mixed, tmp_path) == names
    assert is_frame_folder(tmp_path, mixed)
    write_stills(tmp_path, names)
    with FrameFolderReader(tmp_path) as reader:
        assert numbers(reader.pictures(range(9))) == [0, 1, 2]


@pytest.mark.parametrize(
    "names",
    [
        ["cam1_1.png", "cam1_2.png", "cam2_1.png", "cam2_2.png"],  # none is different in all
        ["a1_b2.png", "a2_b1.png"],  # both count, against each other
        ["1_3.png", "2_1.png", "3_2.png"],
        ["day1_900.png", "day1_1700.png", "day2_800.png"],  # hours of two days
        ["x4_y900.png", "x9_y20.png", "x2_y500.png"],
        ["t_0.05.png", "t_0.1.png", "t_0.12.png"],
    ],
)
def test_numbers_without_a_clear_order(tmp_path, names):
    write_stills(tmp_path, names)
    text = (
        rf"cannot read {tmp_path}: expected stills with a number in their names that counts them, "
        r"got several numbers that differ and give no clear order, as in .*; rename them, such as "
        r"frame_0001.png, or set exts='png' to take each picture as a clip"
    )
    for use in (lambda: FrameFolderReader(tmp_path), lambda: find_clips(tmp_path)):
        with pytest.raises(UnreadableVideoError, match=text):
            use()
    assert len(find_clips(tmp_path, "png")) == len(names)
    # with captions, or beside other pictures, each is a clip of its own
    (tmp_path / names[0]).with_suffix(".txt").touch()
    assert len(find_clips(tmp_path)) == len(names)
    (tmp_path / names[0]).with_suffix(".txt").unlink()
    Image.new("L", (6, 4)).save(tmp_path / "cover.png")
    assert len(find_clips(tmp_path)) == len(names) + 1
    assert sorted(stills_among(tmp_path, [*names, "cover.png"])) == sorted(names)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_animations_are_videos_by_themselves(tmp_path, ending):
    first, second = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")
    names = [f"clip{number}.{ending}" for number in range(2)]
    for name in names:
        first.save(tmp_path / name, save_all=True, append_images=[second])
    assert not is_frame_folder(tmp_path, names)


@pytest.mark.parametrize("names", [["1.png", "2.png", "map.png"], ["1.png", "2.png", "1.txt"]])
def test_stills_that_are_no_video_because_of_other_files(tmp_path, names):
    write_stills(tmp_path, ["1.png", "2.png"])
    assert not is_frame_folder(tmp_path, names)
    assert stills_among(tmp_path, names) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    "names", [["1.mp4", "1.png", "2.mp4", "2.png"], ["1.png", "a.png"], ["a.mp4"], []]
)
def test_thumbnails_and_single_pictures_are_no_series(tmp_path, names):
    assert stills_among(tmp_path, names) == []


def test_a_first_still_that_cannot_be_looked_into(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", closed)
    assert is_frame_folder(tmp_path, ["1.png", "2.png"])


def test_other_folders(tmp_path):
    with pytest.raises(UnreadableVideoError, match=r"numbered stills, got an empty folder; put"):
        FrameFolderReader(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UnreadableVideoError, match=r"numbered stills, got notes.txt; put"):
        FrameFolderReader(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone, found none"):
        FrameFolderReader(tmp_path / "gone")
    write_stills(tmp_path, ["1.png"])
    with pytest.raises(ValueError, match=r"channels must be one of .* got 2"):
        FrameFolderReader(tmp_path, channels=2)


def test_a_damaged_still_is_named(tmp_path):
    write_stills(tmp_path, ["f0.png", "f1.png", "f2.png"])
    (tmp_path / "f1.png").write_bytes((tmp_path / "f1.png").read_bytes()[:-1])
    with FrameFolderReader(tmp_path) as reader:
        frames = reader.pictures(range(3))
        next(frames)
        with pytest.raises(UnreadableVideoError, match=r"f1.png: .* got a png cut short after"):
            next(frames)


def deep(level):
    return Image.fromarray(np.full((4, 6), level, np.uint16))


def test_stills_of_sixteen_bits(tmp_path):
    for number in range(3):
        deep(1000 * number).save(tmp_path / f"f{number}.png")
    with FrameFolderReader(tmp_path) as reader:
        assert (reader.is_array, reader.channels, reader.num_frames) == (True, 1, 3)
        assert reader.array([0, 2, 7])[0, :, 0, 0].tolist() == [0, 2000]
        assert reader.array([5]).shape[:2] == (1, 0)
        with pytest.raises(TypeError, match="got an array; call array"):
            reader.pictures([0])


@pytest.mark.parametrize("is_first_deep", [False, True])
def test_stills_of_8_and_of_16_bits(tmp_path, is_first_deep):
    stills = [Image.new("L", (6, 4)), deep(300)][:: -1 if is_first_deep else 1]
    for number, still in enumerate(stills):
        still.save(tmp_path / f"f{number}.png")
    kinds = ["8 bits", "more than 8 bits"][:: -1 if is_first_deep else 1]
    text = (
        rf"f1.png: expected a still of {kinds[0]}, as f0.png is, got one of {kinds[1]}; store all"
    )
    with FrameFolderReader(tmp_path) as reader, pytest.raises(UnreadableVideoError, match=text):
        list(reader.array(range(2)) if is_first_deep else reader.pictures(range(2)))


@pytest.mark.parametrize("ending", ["tif", "webp", "png"])
def test_a_still_of_several_pages_is_named(tmp_path, ending):
    pages = [Image.new("RGB", (6, 4), color) for color in ("red", "green", "blue")]
    pages[0].save(tmp_path / f"f0.{ending}")
    pages[0].save(tmp_path / f"f1.{ending}", save_all=True, append_images=pages[1:])
    text = (
        rf"f1.{ending}: expected a single picture, got 3 pages or frames; store each by itself; to "
        rf"take each file as a clip, set exts='{ending}'"
    )
    with FrameFolderReader(tmp_path) as reader, pytest.raises(UnreadableVideoError, match=text):
        list(reader.pictures(range(2)))
    assert Dataset(tmp_path, 4, num_frames=3, exts=ending)[1][:, :, 0, 0].T.argmax(1).tolist() == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_stills_stand_upright(tmp_path, ending, code):
    # what EXIF calls the first row and the first column of what is stored
    turned = {
        1: lambda shown: shown,
        2: np.fliplr,
        3: lambda shown: np.rot90(shown, 2),
        4: np.flipud,
        5: lambda shown: shown.swapaxes(0, 1),
        6: lambda shown: np.rot90(shown, 1),
        7: lambda shown: np.rot90(shown, 2).swapaxes(0, 1),
        8: lambda shown: np.rot90(shown, -1),
    }
    shown = np.zeros((16, 24, 3), np.uint8)
    shown[:8] = 90
    shown[:, :8, 0] = 220
    note = Image.Exif()
    note[274] = code
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    stored = Image.fromarray(np.ascontiguousarray(turned[code](shown)))
    for number in range(2):
        stored.save(tmp_path / f"f{number}.{ending}", exif=note, lossless=True, **options)
    with FrameFolderReader(tmp_path) as reader:
        for frame in reader.pictures(range(2)):
            np.testing.assert_allclose(np.asarray(frame), shown, atol=12)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("note", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40])
def test_damaged_exif_data_say_nothing(tmp_path, ending, note):
    Image.new("RGB", (6, 4), "white").save(tmp_path / f"f1.{ending}", exif=note)
    with FrameFolderReader(tmp_path) as reader:
        assert [frame.size for frame in reader.pictures([0])] == [(6, 4)]


def test_an_unknown_orientation_says_nothing(tmp_path):
    note = Image.Exif()
    note[274] = 9
    Image.new("RGB", (6, 4)).save(tmp_path / "f1.jpg", exif=note)
    with FrameFolderReader(tmp_path) as reader:
        assert [frame.size for frame in reader.pictures([0])] == [(6, 4)]
