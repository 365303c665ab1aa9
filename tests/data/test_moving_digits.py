"""Moving digits: the data, the clips and the files."""

import pytest
import torch

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.moving_digits import (
    DIGIT_NAMES,
    DIRECTIONS,
    load_digits,
    moving_digit_clip,
    write_moving_digits,
)
from video_diffusion_pytorch.data.video_file import gif_to_tensor


def centre(clip):
    """`(f, 2)`: the row and column of the middle of the ink's bounding box."""
    boxes = [frame.nonzero() for frame in clip[0]]
    return torch.stack([(box.amin(0) + box.amax(0)) / 2 for box in boxes])


def test_digits():
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == torch.uint8
    assert (int(images.min()), int(images.max())) == (0, 16)
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_digit_sets_off_in_its_direction_and_stays_whole(direction):
    digit = load_digits()[0][5]
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        clip = moving_digit_clip(digit, 40, 32, generator, direction=direction)
        assert clip.shape == (1, 40, 32, 32)
        assert clip.dtype == torch.uint8
        # All of the ink is in every frame
        assert (clip.long().sum((0, 2, 3)) == clip[:, 0].long().sum()).all()
        steps = centre(clip).diff(dim=0)
        axis, sign = next((i, s) for i, s in enumerate(DIRECTIONS[direction]) if s)
        assert steps[0, axis] * sign in (1, 3)
        # It bounces: there are steps back too, none of them longer, and it never stands still
        assert (steps[:, axis] * sign < 0).any()
        assert steps[:, axis].abs().min() >= 1
        assert steps[:, axis].abs().max() == steps[0, axis].abs()
        assert steps[:, 1 - axis].abs().max() <= 1


@pytest.mark.parametrize("image_size", [24, 25, 31, 48])
def test_successive_frames_differ(image_size):
    digits = load_digits()[0]
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        clip = moving_digit_clip(digits[number], 60, image_size, generator)
        assert (clip[0, 1:] != clip[0, :-1]).flatten(1).any(1).all()


def test_written_clips(tmp_path):
    paths = write_moving_digits(tmp_path / "new" / "digits", num_clips=12, seed=3)
    folder = tmp_path / "new" / "digits"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([*(path.name for path in paths), "manifest.csv"])
    for number, path in enumerate(paths):
        index, name, direction = path.stem.split("_")
        assert int(index) == number
        assert name in DIGIT_NAMES
        axis, sign = next((i, s) for i, s in enumerate(DIRECTIONS[direction]) if s)
        clip = gif_to_tensor(path, channels=1)
        assert clip.shape == (1, 10, 32, 32)
        assert (centre(clip)[1] - centre(clip)[0])[axis] * sign > 0


def test_name_tells_the_digit(tmp_path):
    paths = write_moving_digits(tmp_path, num_clips=3, seed=1)
    images, labels = load_digits()
    for path in paths:
        wanted = DIGIT_NAMES.index(path.stem.split("_")[1])
        ink = gif_to_tensor(path, channels=1)[0, 0].sum()
        sums = images[labels == wanted].sum((1, 2)) * 4 / 16  # each pixel became four
        assert (sums - ink).abs().min() < 0.5
    assert len(paths) == 3


def test_a_manifest_tells_labels_and_captions(tmp_path):
    paths = write_moving_digits(tmp_path, num_clips=9, seed=1, image_size=24, num_frames=2)
    options = {"manifest": tmp_path / "manifest.csv", "conditions": ["label", "caption"]}
    clips = Dataset(tmp_path, 24, 1, 2, **options)
    assert clips.paths == paths
    for path, item in zip(paths, clips, strict=True):
        _, word, direction = path.stem.split("_")
        assert DIGIT_NAMES[item["labels"]] == word
        assert item["cond"] == f"a {word} that moves {direction}"
    # without it the folder holds these clips alone
    assert Dataset(tmp_path, 24, 1, 2, exts=None).paths == paths


def test_same_seed_gives_the_same_clips(tmp_path):
    first = write_moving_digits(tmp_path / "a", num_clips=3, seed=7)
    longer = write_moving_digits(tmp_path / "b", num_clips=5, seed=7)
    other = write_moving_digits(tmp_path / "c", num_clips=3, seed=8)
    assert [path.name for path in first] == [path.name for path in longer[:3]]
    for one, two in zip(first, longer[:3], strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert [p.read_bytes() for p in first] != [p.read_bytes() for p in other]


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"digit_image": torch.zeros(28, 28)}, r"got \(28, 28\) and 32; take a digit of load"),
        ({"image_size": 16}, r"image_size of at least 24, got \(8, 8\) and 16; take"),
        ({"image_size": (32, 32)}, r"image_size must be a whole number .*, got \(32, 32\)"),
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"direction": "north"}, "direction must be one of left, right, up, down, got 'north'"),
    ],
)
def test_wrong_clip(arguments, got):
    given = {"digit_image": torch.zeros(8, 8), "num_frames": 4, "image_size": 32, **arguments}
    with pytest.raises(ValueError, match=got):
        moving_digit_clip(**given)
