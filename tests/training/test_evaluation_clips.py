"""Clips to evaluate on: their units, and what a result tells of them."""

import shutil

import pytest
import torch
from torch.utils.data import IterableDataset, Subset

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.training.evaluation_clips import (
    checked_indices,
    protocol_of_clips,
    unit_limits,
)
from video_diffusion_pytorch.training.evaluation_options import Evaluation


def diffusion(**options):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    return GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2, **options)


def test_the_hash_is_of_the_files_wherever_they_are(clips, tmp_path):
    def found(folder, **options):
        return protocol_of_clips(Dataset(folder, 8, 1, 3, **options), range(6))

    here = found(clips)
    shutil.copytree(clips, tmp_path / "elsewhere")
    assert found(tmp_path / "elsewhere") == here
    write_video(torch.rand(1, 5, 8, 8), tmp_path / "elsewhere" / "03.gif")
    assert found(tmp_path / "elsewhere")["files"] != here["files"]
    assert (here["frames"], here["size"], here["fit"]) == (3, [8, 8], "cover")
    skipped = found(clips, frame_skip=2, pad="repeat")
    assert (skipped["frame_skip"], skipped["pad"], skipped["files"]) == (2, "repeat", here["files"])


def test_parts_and_other_datasets(clips):
    dataset = Dataset(clips, 8, 1, 3)
    part = Subset(dataset, [3, 4, 5])
    assert protocol_of_clips(part, [0, 2]) == protocol_of_clips(dataset, [3, 5])
    assert protocol_of_clips([1, 2, 3], [0]) == {"dataset": "list"}


def test_the_split_of_a_manifest(clips, tmp_path):
    rows = "".join(f"{i:02}.gif,test\n" for i in range(3))
    (tmp_path / "clips.csv").write_text(f"path,split\n{rows}")
    dataset = Dataset(clips, 8, 1, 3, manifest=tmp_path / "clips.csv", split="test")
    assert protocol_of_clips(dataset, range(3))["split"] == "test"
    assert protocol_of_clips(Dataset(clips, 8, 1, 3), range(3))["split"] is None


def test_units():
    assert unit_limits(diffusion(), Evaluation()) is None
    assert unit_limits(diffusion(value_range=(250, 310)), Evaluation()) == ((250.0,), (310.0,))
    asked = Evaluation(value_range=(-3, 3))
    assert unit_limits(diffusion(auto_normalize=False), asked) == ((-3.0,), (3.0,))
    with pytest.raises(ValueError, match=r"auto_normalize=False and no value_range; pass value_ra"):
        unit_limits(diffusion(auto_normalize=False), Evaluation())


def test_clips_that_cannot_be_evaluated_on(clips):
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1, 3, 8, 8)

    for source, told in ((Stream(), "a Stream"), (None, "a NoneType"), ([0], "fewer")):
        with pytest.raises(ValueError, match=rf"at least 2 clips that can be read.*got {told}"):
            checked_indices(diffusion(), source, None)
    in_kelvin = Dataset(clips, 8, 1, 3, value_range=(250, 310))
    with pytest.raises(
        ValueError, match=r"in the units that the model was trained with, which are"
    ):
        checked_indices(diffusion(), in_kelvin, None)
    assert [*checked_indices(diffusion(), [0, 1, 2], None)] == [0, 1, 2]
