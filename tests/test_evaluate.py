"""A model and a folder of clips in, a result out."""

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, evaluate_diffusion
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.training.evaluation_options import Evaluation


def means(videos):
    return videos.mean((2, 3, 4))


MEANS = Evaluation(features=FeatureNetwork(means, name="means", channels=None))
QUIET = {"progress": False, "num_workers": 0}


def diffusion(value_range=None, channels=1, **options):
    torch.manual_seed(0)
    unet = Unet3D(dim=4, dim_mults=(1, 2), channels=channels, attn_heads=1, **options)
    return GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2, value_range=value_range)


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    for number in range(6):
        of_class = folder / "ab"[number % 2]
        of_class.mkdir(parents=True, exist_ok=True)
        write_video(torch.rand(1, 4, 8, 8), of_class / f"{number}.gif")
        (of_class / f"{number}.txt").write_text(f"clip {number}")
    return folder


def test_a_result_says_what_was_measured_and_how(clips):
    model = diffusion().train()
    result = evaluate_diffusion(model, clips, MEANS, about={"step": 7}, **QUIET)
    assert model.training
    assert result["scores"]["fvd"] > 0
    assert result["model"] == {"step": 7}
    assert result["device"] == "cpu"
    assert (result["protocol"]["clips"]["number"], result["protocol"]["samples"]["number"]) == (
        6,
        6,
    )
    again = evaluate_diffusion(model, str(clips), MEANS, **QUIET)
    assert again["scores"] == result["scores"]


def test_options_of_the_folder_are_in_the_protocol(clips):
    result = evaluate_diffusion(diffusion(), clips, MEANS, frame_skip=2, pad="repeat", **QUIET)
    assert result["protocol"]["clips"]["frame_skip"] == 2
    with pytest.raises(TypeError, match=r"frame_skip must go with a folder of clips, got a list"):
        evaluate_diffusion(diffusion(), [1, 2], MEANS, frame_skip=2)


def test_conditions_are_those_of_the_clips(clips):
    labels = diffusion(num_classes=2)
    result = evaluate_diffusion(labels, clips, MEANS, **QUIET)
    assert result["protocol"]["samples"]["conditions"] == ["labels"]
    vectors = diffusion(cond_dim=2)
    for text in clips.rglob("*.txt"):
        text.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"got none for 6.*trained with vectors, conditions="
    ):
        evaluate_diffusion(vectors, clips, MEANS, **QUIET)
    told = lambda path: {"cond": torch.ones(2)}  # noqa: E731
    evaluate_diffusion(vectors, clips, MEANS, conditions=told, **QUIET)
    with pytest.raises(FileNotFoundError, match=r"expected .*none"):
        evaluate_diffusion(labels, clips / "missing", MEANS, **QUIET)


def test_arrays_in_units_of_their_own(tmp_path):
    for number in range(4):
        write_video(torch.rand(5, 3, 8, 8) * 60 + 250, tmp_path / f"{number}.npy")
    model = diffusion(value_range=(250, 310), channels=5)
    with pytest.warns(UserWarning, match="must come from more than 64 videos, got 4"):
        result = evaluate_diffusion(model, tmp_path, **QUIET)
    assert result["scores"]["random_feature_distance"] > 0
    assert result["protocol"]["clips"]["value_range"] == [[250.0] * 5, [310.0] * 5]
