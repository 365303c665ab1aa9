"""The arguments of a diffusion: what is refused, and what a file holds of the rest."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.config import CONFIG


def diffusion_with(**config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 10} | config
    return GaussianDiffusion(nn.Identity(), **config)


def test_config_holds_every_argument_but_the_network():
    diffusion = diffusion_with()
    assert set(diffusion.config) == {*CONFIG, "value_range", "cond_value_range"}
    assert diffusion.config == diffusion_with(**diffusion.config).config


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"image_size": np.int64(8)}, 8),
        ({"image_size": [6, 10]}, (6, 10)),
        ({"image_size": np.array([6, 10])}, (6, 10)),
        ({"image_size": torch.Size((6, 10))}, (6, 10)),
        ({"min_snr_gamma": torch.tensor(5)}, 5.0),
        ({"num_frames": np.uint8(3)}, 3),
        ({"auto_normalize": 0}, False),
        ({"beta_schedule": [0.5] * 10}, (0.5,) * 10),
    ],
)
def test_values_become_plain(given, plain):
    ((name, _),) = given.items()
    diffusion = diffusion_with(**given)
    assert diffusion.config[name] == plain
    assert type(diffusion.config[name]) is type(plain)
    if name != "beta_schedule":
        assert getattr(diffusion, name) == plain


@pytest.mark.parametrize(
    ("config", "got"),
    [
        ({"image_size": None}, "image_size must be a whole number of pixels of"),
        ({"image_size": 8.0}, "image_size must be a whole number of pixels of"),
        (
            {"image_size": (8.0, 8.0)},
            "image_size must be a whole number of pixels of at least 1, or",
        ),
        ({"image_size": "88"}, "image_size must be a whole number of pixels of"),
        ({"timesteps": 8.0}, "timesteps must be an integer, got 8.0; give it as int, a whole numb"),
        ({"timesteps": None}, "timesteps must be an integer, got None; give it as int"),
        ({"num_frames": "4"}, "num_frames must be an integer, got '4'; give it as int"),
        ({"channels": 3.0}, "channels must be an integer, got 3.0; give it as int"),
        ({"channels": 0}, "channels must be at least 1, got 0; give a positive number"),
        ({"given_frames": 1.5}, "given_frames must be an integer, got 1.5; give it as int"),
        ({"sampling_timesteps": 2.5}, "sampling_timesteps must be an integer, got 2.5; give it"),
        ({"loss_type": None}, "loss_type must be one of l1, l2, huber, got None; choose one"),
        ({"objective": ["pred_v"]}, "objective must be one of pred_noise, pred_v, pred_x_start, g"),
        ({"beta_schedule": None}, "beta_schedule must be one of cosine, linear, sigmoid, contin"),
        ({"min_snr_gamma": "5"}, "min_snr_gamma must be a number, got '5'; give it as int or fl"),
        ({"min_snr_gamma": (5, 5)}, "min_snr_gamma must be a number, got (5, 5); give it as int"),
        ({"min_snr_gamma": float("nan")}, "min_snr_gamma must be above 0, got nan; the paper's"),
        ({"cond_drop_prob": None}, "cond_drop_prob must be a number, got None; give it as int"),
        ({"ddim_sampling_eta": float("nan")}, "ddim_sampling_eta must be in [0, 1], got nan; give"),
        ({"auto_normalize": "False"}, "auto_normalize must be True or False, got 'False'; give"),
        ({"use_dynamic_thres": 2}, "use_dynamic_thres must be True or False, got 2; give one of"),
    ],
)
def test_arguments_of_another_kind(config, got):
    with pytest.raises(ValueError, match=re.escape(f"GaussianDiffusion: {got}")):
        diffusion_with(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number of pixels of"),
        ({"image_size": (8,)}, "image_size must be a whole number of pixels of"),
        ({"image_size": (8, 0)}, "image_size must be a whole number of pixels of"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0; give a positive number"),
        ({"timesteps": 0}, "timesteps must be at least 1, got 0; give a positive number"),
        ({"loss_type": "l3"}, "loss_type must be one of l1, l2, huber, got 'l3'; choose one"),
        ({"objective": "v"}, "objective must be one of pred_noise, pred_v, pred_x_start, got 'v'"),
        ({"beta_schedule": "fast"}, "beta_schedule must be one of cosine, linear, sigmoid, conti"),
        ({"min_snr_gamma": 0}, "min_snr_gamma must be above 0, got 0; the paper's is 5"),
        ({"timesteps": 5, "sampling_timesteps": 6}, "sampling_timesteps must be from 1 to timest"),
        ({"sampling_timesteps": 0}, "sampling_timesteps must be from 1 to timesteps = 10, got 0"),
        ({"ddim_sampling_eta": 2}, "ddim_sampling_eta must be in [0, 1], got 2; give it as a fr"),
        ({"cond_drop_prob": 1.5}, "cond_drop_prob must be in [0, 1], got 1.5; give it as a"),
        (
            {"dynamic_thres_percentile": 90},
            "dynamic_thres_percentile must be in [0, 1], got 90; give it as a fraction",
        ),
    ],
)
def test_arguments_outside_their_range(config, message):
    with pytest.raises(ValueError, match=re.escape(f"GaussianDiffusion: {message}")):
        diffusion_with(**config)
