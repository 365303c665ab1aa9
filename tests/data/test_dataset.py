"""A folder of video files becomes clips."""

import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from video_diffusion_pytorch.data.dataset import Dataset, SkipUnreadable, cast_num_frames
from video_diffusion_pytorch.data.video_file import UnreadableVideoError, video_tensor_to_gif

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


# Mistakes


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of videos at .*gone, found none; check"):
        Dataset(tmp_path / "gone", 8)


def test_folder_is_a_file():
    with pytest.raises(NotADirectoryError, match=r"got a file; pass the folder that holds it"):
        Dataset(GIFS / "single_1x24x24.gif", 8)


def test_no_clip_in_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"files ending in .gif in .*, got no file at all;"):
        Dataset(tmp_path, 8)
    for name in ("a.mp4", "b.MP4", "README"):
        (tmp_path / name).touch()
    text = r"ending in .gif or .webp in .*, got 2 × .mp4, 1 × no extension; check the folder"
    with pytest.raises(FileNotFoundError, match=text):
        Dataset(tmp_path, 8, exts=["gif", ".webp"])
    with pytest.raises(FileNotFoundError, match="exts is empty"):
        Dataset(tmp_path, 8, exts=[])


@pytest.mark.parametrize("size", [0, -4, 8.0, True, "8", (8,), (8, 0), (8, 8, 8)])
def test_wrong_image_size(size):
    with pytest.raises(ValueError, match=r"image_size must be .* got .*; pass for example 64"):
        Dataset(GIFS, size)


@pytest.mark.parametrize("num_frames", [0, -1, 2.5, None])
def test_wrong_num_frames(num_frames):
    with pytest.raises(ValueError, match=r"num_frames must be .* got .*force_num_frames=False"):
        Dataset(GIFS, 8, num_frames=num_frames)


def test_wrong_channels():
    with pytest.raises(ValueError, match=r"channels must be one of \[1, 3, 4\], got 2; choose"):
        Dataset(GIFS, 8, channels=2)


# Damaged files


class Counting(torch.utils.data.Dataset):
    """Item `i` is the number `i`; some cannot be read."""

    def __init__(self, total, broken):
        self.total, self.broken, self.asked = total, broken, []

    def __len__(self):
        return self.total

    def __getitem__(self, index):
        self.asked.append(index)
        if index in self.broken:
            raise UnreadableVideoError(f"cannot read clip_{index}.gif")
        return index


def test_damaged_file_is_named_by_the_dataset(tmp_path):
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    with pytest.raises(UnreadableVideoError, match=r"broken\.gif"):
        Dataset(tmp_path, 8)[0]


def test_next_readable_item_is_given():
    dataset = SkipUnreadable(Counting(40, broken={3, 4, 39}))
    assert len(dataset) == 40
    expected = [5 if i in (3, 4) else 0 if i == 39 else i for i in range(40)]
    assert [dataset[i] for i in range(40)] == expected
    assert [dataset[i - 40] for i in range(40)] == expected
    assert dataset.unreadable == {i: f"cannot read clip_{i}.gif" for i in (3, 4, 39)}


def test_known_damage_is_neither_decoded_nor_logged_again(caplog):
    counting = Counting(20, broken={7})
    dataset = SkipUnreadable(counting)
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        assert [dataset[7] for _ in range(3)] == [8, 8, 8]
    assert counting.asked == [7, 8, 8, 8]
    assert [record.getMessage() for record in caplog.records] == [
        "left out item 7 of the dataset: cannot read clip_7.gif"
    ]
    assert caplog.records[0].name == "video_diffusion_pytorch"


def test_more_than_a_tenth_is_an_error():
    dataset = SkipUnreadable(Counting(20, broken={1, 2, 3}))
    text = (
        r"at most a tenth of the 20 files to be unreadable, got 3 so far; repair or remove them, "
        r"the first being:\n  cannot read clip_1.gif\n  cannot read clip_2.gif\n  .*clip_3.gif$"
    )
    for _ in range(2):  # it stays an error, also where the item asked for could be read
        with pytest.raises(UnreadableVideoError, match=text):
            dataset[1]
    with pytest.raises(UnreadableVideoError, match="got 3 so far"):
        dataset[10]


def test_a_tenth_is_not_yet_an_error():
    dataset = SkipUnreadable(Counting(20, broken={1, 2}))
    assert dataset[1] == 3
    assert len(dataset.unreadable) == 2


def test_at_most_five_files_are_named():
    dataset = SkipUnreadable(Counting(100, broken=set(range(100))))
    with pytest.raises(UnreadableVideoError, match="got 11 so far") as caught:
        dataset[0]
    assert str(caught.value).count("clip_") == 5


def test_single_damaged_file_is_an_error():
    dataset = SkipUnreadable(Counting(1, broken={0}))
    for _ in range(2):
        with pytest.raises(UnreadableVideoError, match="got 1 so far"):
            dataset[0]


def test_other_errors_pass_through():
    class Fails(Counting):
        def __getitem__(self, index):
            raise ValueError("something else")

    dataset = SkipUnreadable(Fails(10, set()))
    with pytest.raises(ValueError, match="something else"):
        dataset[0]
    assert not dataset.unreadable


def test_skipping_in_a_loader(tmp_path):
    for number in range(12):
        shutil.copy(GIFS / "rgb_10x24x24.gif", tmp_path / f"{number:02d}.gif")
    (tmp_path / "05.gif").write_bytes((GIFS / "rgb_10x24x24.gif").read_bytes()[:-1])
    dataset = SkipUnreadable(Dataset(tmp_path, 8, num_frames=2))
    batches = list(DataLoader(dataset, batch_size=4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 2, 8, 8)] * 3
    assert "05.gif" in dataset.unreadable[5]


@pytest.mark.parametrize("index", [5, -6])
def test_index_out_of_range(index):
    dataset = SkipUnreadable(Counting(5, broken=set()))
    with pytest.raises(IndexError, match=rf"index must be in -5 to 4, got {index}; the dataset"):
        dataset[index]
    assert list(dataset) == [0, 1, 2, 3, 4]
