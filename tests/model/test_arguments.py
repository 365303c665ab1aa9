"""What a network is built with is checked before anything is built."""

import re

import pytest

from video_diffusion_pytorch import Unet3D


def refused(message, **options):
    with pytest.raises(ValueError, match=re.escape(message)):
        Unet3D(8, dim_mults=(1, 2), **options)


@pytest.mark.parametrize(
    "name",
    ["blocks_per_level", "emb_layers", "emb_dim", "spatial_attn_dim_head", "num_text_tokens"],
)
def test_numbers_are_positive(name):
    message = f"{name} must be at least 1, got 0; give a positive number"
    refused(message, cond_dim=4, **{name: 0})


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("text_pooling", "'mean', 'attention'"),
        ("token_shift", "None, 'time', 'space', 'both'"),
        ("time_input", "'step', 'log_snr'"),
    ],
)
def test_choices_are_named(name, choices):
    first = choices.split(", ")[0]
    refused(
        f"{name} must be one of {choices}, got 'depth'; leave it out for {first}", **{name: "depth"}
    )


@pytest.mark.parametrize("name", ["full_attn_levels", "temporal_attn_levels"])
@pytest.mark.parametrize("levels", [(0, 2), (-1,), 1, "01", (True,), (1.0,), {1}])
def test_levels_are_those_of_the_network(name, levels):
    message = (
        f"{name} must be a tuple of numbers of levels from 0, the finest, to 1, got {levels!r}; "
        "count the dim_mults"
    )
    refused(message, **{name: levels})


@pytest.mark.parametrize("dropout", [-0.1, 1.0, "0.1", None])
def test_dropout_is_a_share(dropout):
    message = f"dropout must be a number from 0 to below 1, got {dropout!r}; the paper has 0.1"
    refused(message, dropout=dropout)


@pytest.mark.parametrize("name", ["channels", "blocks_per_level", "num_text_tokens"])
@pytest.mark.parametrize("value", [2.0, "2", True])
def test_numbers_are_whole(name, value):
    message = f"{name} must be a whole number, got {value!r}; give it without a point"
    refused(message, cond_dim=4, **{name: value})


@pytest.mark.parametrize("options", [{"num_text_tokens": 4}, {"text_pooling": "attention"}])
def test_text_has_a_width(options):
    [name] = options
    refused(f"{name} must go with the width of the encoder's states, got no cond_dim", **options)
