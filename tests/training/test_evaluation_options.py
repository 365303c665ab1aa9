"""What an evaluation measures, and what of it goes into the protocol."""

import pytest
import torch

from video_diffusion_pytorch import DDIM, GaussianDiffusion, Unet3D
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.training.evaluation_options import Evaluation


def diffusion(given_frames=0, **options):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, **options)
    return GaussianDiffusion(
        unet, image_size=16, num_frames=3, timesteps=30, given_frames=given_frames
    )


def test_the_distance_of_random_features_is_not_called_fvd():
    assert Evaluation().networks(1).distance == "random_feature_distance"
    network = FeatureNetwork(lambda x: x.mean((2, 3, 4)), name="means")
    assert Evaluation(features=network).networks(1).distance == "fvd"


@pytest.mark.parametrize(
    ("options", "steps", "told"),
    [
        ({}, 20, "dpm++sde"),
        ({"steps": 7}, 7, "dpm++sde"),
        ({"sampler": "ddpm"}, 30, "ddpm"),
        ({"sampler": "ancestral"}, 30, "ancestral"),
        ({"sampler": "ddim"}, 30, "ddim, eta=0.0"),
        ({"sampler": DDIM(eta=0.5)}, 30, "DDIM(eta=0.5, langevin_delta=0.0, spacing='trailing')"),
    ],
)
def test_the_protocol_tells_the_steps_that_are_taken(options, steps, told):
    model, evaluation = diffusion(), Evaluation(**options)
    found = evaluation.sampling_protocol(model)
    assert (found["steps"], found["sampler"]) == (steps, told)
    assert evaluation.sampling(model)["steps"] == steps
    model.sample(**evaluation.sampling(model), batch_size=1)


def test_the_models_own_number_of_steps():
    model = diffusion()
    model.sampling_timesteps = 4
    assert Evaluation().sampling_protocol(model)["steps"] == 4


def test_tasks():
    model = diffusion()
    assert Evaluation().sampling_protocol(model)["task"] == "generation"
    assert Evaluation().similarity(model) is None
    predicting = Evaluation(given_frames=1)
    assert predicting.sampling_protocol(model)["task"] == "prediction by guidance"
    assert predicting.similarity(model).measures == ("psnr", "ssim")
    trained = diffusion(given_frames=2, cond_channels=2)
    found = Evaluation().sampling_protocol(trained)
    assert (found["task"], found["given_frames"]) == ("prediction", 2)
    classes = diffusion(num_classes=2)
    found = Evaluation(cond_scale=2).sampling_protocol(classes)
    assert (found["conditions"], found["cond_scale"]) == (["labels"], 2)


def test_options_that_cannot_be():
    for name, least in {
        "clips": 2,
        "count": 2,
        "max_batch": 1,
        "given_frames": 0,
        "seed": 0,
    }.items():
        with pytest.raises(ValueError, match=rf"Evaluation: {name} must be at least {least}, got"):
            Evaluation(**{name: least - 1})
    with pytest.raises(ValueError, match=r"sampler must be one of .*, got 'euler'; choose one"):
        Evaluation(sampler="euler")
    with pytest.raises(ValueError, match=r"outputs must be one of logits, probabilities, got 'x'"):
        Evaluation(class_outputs="x").networks(1)
    with pytest.raises(ValueError, match=r"those that the model was trained with, 2, got 1; leave"):
        Evaluation(given_frames=1).frames_to_give(diffusion(given_frames=2, cond_channels=2))
    with pytest.raises(
        ValueError, match=r"must leave some of 3 frames to predict, got 3; give few"
    ):
        Evaluation(given_frames=3).frames_to_give(diffusion())


def test_making_one_leaves_the_random_numbers():
    state = torch.get_rng_state()
    Evaluation().networks(3)
    assert torch.equal(torch.get_rng_state(), state)
