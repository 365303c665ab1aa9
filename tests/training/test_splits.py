"""What a dataset is, which of its clips are trained on, and whether they fit."""

import multiprocessing

import pytest
import torch
from torch.utils.data import IterableDataset, Subset

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.training.batches import choose_workers
from video_diffusion_pytorch.training.checks import (
    check_first_clip,
    check_sample_conditions,
    take_value_range,
)
from video_diffusion_pytorch.training.data_source import check_source, dataset_options
from video_diffusion_pytorch.training.splits import (
    clips_behind,
    clips_to_show,
    hold_out,
)

CLIP = torch.rand(1, 1, 3, 8, 8)


@pytest.fixture
def clips(tmp_path):
    """Two files of 9 frames, in one folder for each class."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        video_tensor_to_gif(torch.rand(1, 9, 8, 8), tmp_path / name / "clip.gif")

    def make(**options):
        return Dataset(tmp_path, 8, **{"channels": 1, "num_frames": 3, **options})

    return make


def model(diffusion=None, **unet):
    torch.manual_seed(0)
    network = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, **unet)
    return GaussianDiffusion(network, image_size=8, num_frames=3, timesteps=2, **(diffusion or {}))


def test_keywords_that_go_to_the_dataset():
    options = dataset_options(Trainer)
    assert {"conditions", "clip_start", "cache", "value_range", "read_fn"} <= options.keys()
    assert {"folder", "image_size", "num_frames", "as_uint8", "exclude"} & options.keys() == set()
    assert options["exts"] is None


def test_samples_must_not_be_trained_on(tmp_path):
    assert check_source({"folder": str(tmp_path)}, {}, Trainer, tmp_path / "results") == "folder"
    with pytest.raises(ValueError, match="results_folder must not be the folder of the clips, got"):
        check_source({"folder": tmp_path}, {}, Trainer, tmp_path / "x" / "..")


def test_the_number_of_workers(monkeypatch, clips, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    def cores(count):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(count), raising=False)

    cores(6)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "fork")
    assert choose_workers([1]) == 6
    assert choose_workers(clips()) == 6
    assert choose_workers(Stream()) == 0
    assert choose_workers(clips(cache=tmp_path / "cache")) == 0
    assert choose_workers(Subset(clips(cache=tmp_path / "cache"), [0])) == 0
    cores(64)
    assert choose_workers([1]) == 8
    cores(1)
    assert choose_workers([1]) == 0
    cores(2)
    assert choose_workers([1]) == 2
    cores(16)
    for processes, workers in (("2", 8), ("4", 4), ("16", 0)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert choose_workers([1]) == workers
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert choose_workers([1]) == 0


def test_asking_does_not_settle_how_processes_start(monkeypatch):
    asked = []
    monkeypatch.setattr(
        multiprocessing, "get_start_method", lambda allow_none: asked.append(allow_none)
    )
    choose_workers([1])
    assert asked == [True]


def test_what_is_held_out(clips):
    assert hold_out(range(10), 0) == (list(range(10)), [])
    train_on, apart = hold_out(range(10), 2)
    assert apart == [0, 9]
    assert train_on == list(range(1, 9))
    # all clips of a file, of which the first is shown
    assert hold_out(clips(clip_start="all"), 1) == ([3, 4, 5], [0])
    for count in (-1, 2):
        message = f"held_out must leave clips to train on, got {count} of 2; hold out fewer, or"
        with pytest.raises(ValueError, match=message):
            hold_out(clips(), count)


def test_by_default_a_twentieth_of_the_files_is_held_out(clips):
    assert hold_out(range(100), None, at_most=16)[1] == [0, 25, 50, 74, 99]
    assert len(hold_out(range(1000), None, at_most=16)[1]) == 16
    assert hold_out(range(100), None)[1] == []
    # two files make many clips, of which none is spared
    many = clips(clip_start="all", num_frames=1)
    many.paths = many.paths * 10
    assert hold_out(many, None, at_most=16) == (list(range(180)), [])


def test_others_datasets_may_say_their_units_and_no_more():
    class Others(list):
        paths = ("a", "b")
        value_range = (-3, 3)

    others = Others(range(5))
    assert hold_out(others, 1) == ([1, 2, 3, 4], [0])
    assert clips_behind(others) is None
    diffusion = model()
    take_value_range(diffusion, others)
    assert diffusion.config["value_range"] == ((-3.0,), (3.0,))
    others.value_range = (3, -3)
    with pytest.raises(ValueError, match="value_range must be 'fit', 'standardize' or"):
        take_value_range(diffusion, others)


def test_units_are_found_behind_a_part_of_the_clips(clips):
    dataset = clips(value_range=(0, 255))
    part = Subset(Subset(dataset, [1, 0]), [0])
    assert clips_behind(part) is dataset
    diffusion = model()
    take_value_range(diffusion, part)
    # and a second time, when they are there already
    take_value_range(diffusion, part)
    assert diffusion.config["value_range"] == ((0.0,), (255.0,))
    take_value_range(model({"value_range": (0, 255)}), dataset)


def test_more_classes_than_the_network_has(clips):
    check_first_clip(model(num_classes=2), clips(conditions="label"), CLIP, {"labels": [1]})
    message = "at most 1 classes, the network's num_classes, got 2; build it with that"
    with pytest.raises(ValueError, match=message):
        check_first_clip(model(num_classes=1), clips(conditions="label"), CLIP, {"labels": [0]})


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"cond": torch.rand(1, 5)}, r"cond must have the shape \(1, 4\), got \(1, 5\)"),
        (
            {"cond": torch.rand(1, 4), "path": ["x"]},
            "takes cond, got cond, path from the data; set",
        ),
        (
            {"cond": torch.rand(1, 4), "labels": torch.tensor([1])},
            "takes cond, got cond, labels from",
        ),
        ({"cnd": torch.rand(1, 4)}, "takes cond, got cnd from the data"),
    ],
)
def test_conditions_that_do_not_fit(conditions, message):
    check_first_clip(model(cond_dim=4), None, CLIP, {"cond": torch.rand(1, 4)})
    check_first_clip(model(cond_dim=4), None, CLIP, {"cond": ["a caption"]})
    with pytest.raises(ValueError, match=message):
        check_first_clip(model(cond_dim=4), None, CLIP, conditions)


def test_clips_that_the_network_cannot_halve():
    network = Unet3D(dim=4, dim_mults=(1, 2), channels=1, attn_heads=1)
    diffusion = GaussianDiffusion(network, image_size=9, num_frames=3, timesteps=2)
    with pytest.raises(ValueError, match="height and width must be multiples of 2"):
        check_first_clip(diffusion, None, torch.rand(1, 1, 3, 9, 9), {})


def test_other_networks_need_no_methods_of_unet3d():
    class Denoiser(torch.nn.Module):
        channels = 1

        def forward(self, x, t, cond=None, mood=None):
            return x

    diffusion = GaussianDiffusion(Denoiser(), image_size=8, num_frames=3, timesteps=2)
    check_first_clip(diffusion, None, CLIP, {"cond": torch.rand(1, 2), "mood": torch.rand(1)})
    with pytest.raises(ValueError, match="got colour from the data"):
        check_first_clip(diffusion, None, CLIP, {"colour": torch.rand(1)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conds": ["a"]}, r"must hold rows of cond, got \{'conds': \['a'\]\}; give for example"),
        ({"cond": "a whale"}, r"must hold rows of cond, got \{'cond': 'a whale'\}; give"),
        ({"cond": 3.0}, r"must hold rows of cond, got \{'cond': 3.0\}; give"),
        ({}, r"must hold rows of cond, got \{\}; give"),
    ],
)
def test_conditions_of_samples(given, message):
    check_sample_conditions(model(cond_dim=4), {"cond": ["a whale"]})
    with pytest.raises(ValueError, match=message):
        check_sample_conditions(model(cond_dim=4), given)


def test_samples_show_several_conditions(tmp_path):
    for i in range(12):
        # a large class before two small ones
        folder = tmp_path / ("a" if i < 9 else "bc"[i % 2])
        folder.mkdir(exist_ok=True)
        video_tensor_to_gif(CLIP[0], folder / f"{i:02}.gif")
    clips = Dataset(tmp_path, 8, channels=1, num_frames=3, conditions="label")

    def shown(apart, count, dataset=clips):
        trained = [i for i in range(12) if i not in apart]
        return clips_to_show(dataset, apart, trained, count)

    labels = [clips[i]["labels"] for i in range(12)]
    assert labels == [0] * 9 + [1, 2, 2] or labels == [0] * 9 + [1, 1, 2]
    # held-out ones first, then other classes, then evenly spaced
    assert {labels[i] for i in shown([3], 3)} == {0, 1, 2}
    assert shown([3], 3)[0] == 3
    many = shown([3], 8)
    assert (many[0], len(many), len({*many})) == (3, 8, 8)
    assert many[1:] == sorted(many[1:])
    assert {labels[i] for i in shown([], 3)} == {0, 1, 2}
    assert shown([1, 4, 7], 2) == [1, 4]
    assert sorted(shown([3], 99)) == [*range(12)]
    # items of another dataset may all have conditions of their own
    assert shown([5], 4, Subset([CLIP] * 12, range(12))) == [5, 0, 3, 7]
