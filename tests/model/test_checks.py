"""Errors for wrong arguments of a Unet3D and of its calls."""

import re

import pytest
import torch

from video_diffusion_pytorch import Unet3D

X, TIME = torch.randn(2, 3, 4, 8, 8), torch.zeros(2, dtype=torch.long)


@pytest.fixture(scope="module")
def unet():
    return Unet3D(8, dim_mults=(1, 2), attn_heads=2)


@pytest.fixture(scope="module")
def conditional():
    return Unet3D(8, cond_dim=3, dim_mults=(1, 2), attn_heads=2)


def exactly(message):
    return f"^{re.escape(message)}$"


# Calls


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.randn(2, 1, 4, 8, 8),
            "Unet3D: x must have the shape (b, 3, f, h, w), got (2, 1, 4, 8, 8); move the axes, "
            "or build the network with other channels",
        ),
        (
            torch.randn(3, 4, 8, 8),
            "Unet3D: x must have the shape (b, 3, f, h, w), got (3, 4, 8, 8); move the axes, "
            "or build the network with other channels",
        ),
        (
            torch.randn(2, 3, 0, 8, 8),
            "Unet3D: x must have the shape (b, 3, f, h, w), got (2, 3, 0, 8, 8); move the axes, "
            "or build the network with other channels",
        ),
        (
            torch.randn(2, 3, 4, 9, 8),
            "Unet3D: height and width must be multiples of 2 for 2 resolutions, got 9 x 8; "
            "resize, use fewer dim_mults, or pass pad_to_multiple=True",
        ),
        (
            torch.randn(2, 3, 4, 8, 7),
            "Unet3D: height and width must be multiples of 2 for 2 resolutions, got 8 x 7; "
            "resize, use fewer dim_mults, or pass pad_to_multiple=True",
        ),
        (
            torch.randn(5, 3, 4, 8, 8),
            "Unet3D: time must have one step per video, shape (5,), or one per frame, "
            "(5, 4), got (2,); expand it to the batch",
        ),
    ],
)
def test_videos_of_a_wrong_shape(unet, x, message):
    with pytest.raises(ValueError, match=exactly(message)):
        unet(x, TIME)
    with pytest.raises(ValueError, match=exactly(message)):
        unet.forward_with_cond_scale(x, TIME, cond_scale=3.0)


def test_a_time_that_is_not_one_per_video(unet):
    message = "Unet3D: time must have one step per video, shape (2,), or one per frame, (2, 4), "
    message += "got (); expand it"
    with pytest.raises(ValueError, match=re.escape(message)):
        unet(X, TIME[0])
    with pytest.raises(ValueError, match=r"time must have one step .*, got int; expand it"):
        unet(X, 5)


def test_a_condition_where_there_is_none(unet):
    message = (
        "Unet3D: this network was built without a condition, so cond must be None, got Tensor; "
        "build it with cond_dim or use_bert_text_cond"
    )
    for call in (unet, unet.forward_with_cond_scale):
        with pytest.raises(ValueError, match=exactly(message)):
            call(X, TIME, cond=torch.randn(2, 3))


@pytest.mark.parametrize("null_cond_prob", [0.0, 0.5])
def test_a_missing_condition(conditional, null_cond_prob):
    message = (
        "Unet3D: this network was built with a condition, so cond of shape (2, 3) is expected, "
        "got None; pass it, with null_cond_mask true for each video without one"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        conditional(X, TIME, null_cond_prob=null_cond_prob)
    for scale in (1.0, 2.0):
        with pytest.raises(ValueError, match=exactly(message)):
            conditional.forward_with_cond_scale(X, TIME, cond_scale=scale)


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (2, 1, 1, 3)])
def test_a_condition_of_a_wrong_shape(conditional, shape):
    message = (
        f"Unet3D: cond must have the shape (2, 3), got {shape}; check the encoder's width "
        "against the network's cond_dim"
    )
    for call in (conditional, conditional.forward_with_cond_scale):
        with pytest.raises(ValueError, match=exactly(message)):
            call(X, TIME, cond=torch.randn(shape))


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(2), "be a tensor of booleans of shape (2,), got torch.float32"),
        (torch.ones(3, dtype=torch.bool), "have the shape (2,), got (3,)"),
    ],
)
def test_a_wrong_mask_of_focus(unet, conditional, mask, got):
    message = f"Unet3D: focus_present_mask must {got}; use torch.tensor([True, False, ...])"
    with pytest.raises(ValueError, match=exactly(message)):
        unet(X, TIME, focus_present_mask=mask)
    with pytest.raises(ValueError, match=exactly(message)):
        conditional.forward_with_cond_scale(
            X, TIME, torch.randn(2, 3), cond_scale=2.0, focus_present_mask=mask
        )


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(2, 1, dtype=torch.bool), "have the shape (2,), got (2, 1)"),
        ([True, False], "be a tensor of booleans of shape (2,), got list"),
    ],
    ids=str,
)
def test_a_wrong_drop_mask(conditional, mask, got):
    message = f"Unet3D: drop_mask must {got}; use torch.tensor([True, False, ...])"
    with pytest.raises(ValueError, match=exactly(message)):
        conditional(X, TIME, torch.randn(2, 3), drop_mask=mask)


@pytest.mark.parametrize("wrong", ["focus_present", "null_cond_probability"])
def test_a_misspelt_keyword(unet, wrong):
    for call in (unet, unet.forward_with_cond_scale):
        with pytest.raises(TypeError, match=wrong):
            call(X, TIME, **{wrong: 0.5})


# Constructor


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 0}, "Unet3D: dim must be a whole number of at least 1, got 0"),
        ({"dim": None}, "Unet3D: dim must be a whole number of at least 1, got None"),
        ({"attn_heads": 0}, "Unet3D: attn_heads must be a whole number of at least 1, got 0"),
        ({"channels": 2.0}, "Unet3D: channels must be a whole number of at least 1, got 2.0"),
        ({"channels": "2"}, "Unet3D: channels must be a whole number of at least 1, got '2'"),
        ({"num_classes": True}, "num_classes must be a whole number of at least 1, got True"),
        ({"cond_channels": -1}, "cond_channels must be a whole number of at least 0, got -1"),
        (
            {"resnet_groups": 3},
            "Unet3D: resnet_groups must be a divisor of the channels of every level, "
            "[8, 8, 8, 16], or None for RMSNorm, got 3",
        ),
        ({"init_kernel_size": 4}, "Unet3D: init_kernel_size must be odd, got 4"),
        ({"dim_mults": ()}, "dim_mults must be positive factors, one for each resolution, got ()"),
        ({"dim_mults": (1, 0)}, "must be positive factors, one for each resolution, got (1, 0)"),
        ({"block_type": "convnext"}, "Unet3D: block_type must be 'resnet', got 'convnext'"),
        ({"text_pooling": "max"}, "text_pooling must be 'mean' or 'attention', got 'max'"),
        ({"token_shift": "x"}, "must be None, 'time', 'space' or 'both', got 'x'"),
        ({"time_input": "t"}, "Unet3D: time_input must be 'step' or 'log_snr', got 't'"),
        ({"full_attn_levels": (0, 2)}, "numbers of levels from 0, the finest, to 1, got (0, 2)"),
        ({"temporal_attn_levels": (-1,)}, "numbers of levels from 0, the finest, to 1, got (-1,)"),
        ({"full_attn_levels": "01"}, "full_attn_levels must be a list of whole numbers, got '01'"),
        (
            {"temporal_attn_levels": 0},
            "attn_levels must be a list of whole numbers, got 0",
        ),
        ({"dim_mults": 2}, "Unet3D: dim_mults must be a list of whole numbers, got 2"),
        ({"dim_mults": (1, 1.5)}, "dim_mults must be a list of whole numbers, got (1, 1.5)"),
        ({"dropout": -0.1}, "Unet3D: dropout must be from 0 to below 1, got -0.1"),
        ({"dropout": 1.0}, "Unet3D: dropout must be from 0 to below 1, got 1.0"),
        (
            {"num_text_tokens": 4},
            "num_text_tokens and text_pooling='attention' need the width of the encoder's states",
        ),
        ({"text_pooling": "attention"}, "got no cond_dim; pass cond_dim, or use_bert_text_cond"),
        ({"dim": 9}, "dim must be an even number, at least 4, got 9; round the network's dim up"),
    ],
)
def test_arguments_outside_their_range(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Unet3D(**{"dim": 8, "dim_mults": (1, 2), **config})


# Conditions other than the vector


NAMED = {"num_classes": 4, "frame_cond_dim": 6, "cond_channels": 2}


@pytest.fixture(scope="module")
def told():
    return Unet3D(8, dim_mults=(1, 2), attn_heads=2, **NAMED)


def good(**changed):
    conditions = {
        "labels": torch.tensor([0, 3]),
        "frame_cond": torch.randn(2, 4, 6),
        "cond_video": torch.randn(2, 2, 4, 8, 8),
    }
    return {**conditions, **changed}


@pytest.mark.parametrize(
    ("name", "has", "keyword", "missing"),
    [
        (
            "labels",
            "classes",
            "num_classes",
            "pass it, with -1 for each video without a class",
        ),
        ("frame_cond", "a condition per frame", "frame_cond_dim", "pass it"),
        ("cond_video", "a dense condition", "cond_channels", "pass it"),
    ],
)
def test_an_unexpected_and_a_missing_condition(unet, told, name, has, keyword, missing):
    message = (
        f"Unet3D: this network was built without {has}, so {name} must be None, got Tensor; "
        f"build it with {keyword}"
    )
    for call in (unet, unet.forward_with_cond_scale):
        with pytest.raises(ValueError, match=exactly(message)):
            call(X, TIME, **{name: good()[name]})
    shape = tuple(good()[name].shape)
    message = (
        f"Unet3D: this network was built with {has}, so {name} of shape {shape} is expected, got "
        f"None; {missing}"
    )
    for call in (told, told.forward_with_cond_scale):
        with pytest.raises(ValueError, match=exactly(message)):
            call(X, TIME, **good(**{name: None}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"labels": torch.tensor([0])},
            "labels must have the shape (2,), got (1,); give one class per video",
        ),
        (
            {"labels": [0, 3]},
            "labels must be a tensor of integers of shape (2,), got list; give one class per video",
        ),
        (
            {"labels": torch.tensor([0.0, 3.0])},
            "labels must be a tensor of integers of shape (2,), got torch.float32; give one class "
            "per video",
        ),
        (
            {"labels": torch.tensor([True, False])},
            "labels must be a tensor of integers of shape (2,), got torch.bool; give one class "
            "per video",
        ),
        (
            {"labels": torch.tensor([0, 4])},
            "labels must be from 0 to 3, or -1 for no class, got 0 to 4; number the classes from "
            "0, or build the network with more num_classes",
        ),
        (
            {"labels": torch.tensor([-2, 0])},
            "labels must be from 0 to 3, or -1 for no class, got -2 to 0; number the classes from "
            "0, or build the network with more num_classes",
        ),
        (
            {"frame_cond": torch.randn(2, 6)},
            "frame_cond must have the shape (2, 4, 6), got (2, 6); give one vector per frame, of "
            "the network's frame_cond_dim",
        ),
        (
            {"cond_video": torch.randn(2, 3, 4, 8, 8)},
            "cond_video must have the shape (2, 2, 4, 8, 8), got (2, 3, 4, 8, 8); resize it to "
            "the video, and check its channels against the network's cond_channels",
        ),
        (
            {"cond_video": torch.randn(2, 2, 4, 4)},
            "cond_video must have the shape (2, 2, 8, 8), got (2, 2, 4, 4); resize it to "
            "the video, and check its channels against the network's cond_channels",
        ),
        (
            {"null_cond_mask": torch.tensor([True, False])},
            "this network was built without cond, so null_cond_mask must be None, got Tensor; "
            "build it with cond_dim or use_bert_text_cond",
        ),
    ],
)
def test_conditions_that_do_not_fit(told, wrong, message):
    for call in (told, told.forward_with_cond_scale):
        with pytest.raises(ValueError, match=exactly(f"Unet3D: {message}")):
            call(X, TIME, **good(**wrong))


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(3, dtype=torch.bool), "have the shape (2,), got (3,)"),
        ([True, False], "be a tensor of booleans of shape (2,), got list"),
    ],
)
def test_a_wrong_mask_of_captions(conditional, mask, got):
    message = f"Unet3D: null_cond_mask must {got}; use torch.tensor([True, False, ...])"
    for call in (conditional, conditional.forward_with_cond_scale):
        with pytest.raises(ValueError, match=exactly(message)):
            call(X, TIME, torch.randn(2, 3), null_cond_mask=mask)


# Images


@pytest.mark.parametrize("count", [-1, 4, 9])
def test_a_wrong_number_of_images(unet, count):
    message = (
        "Unet3D: image_frames must be from 0 to 3, one less than the frames of x, got "
        f"{count}; leave the frames of the video in front of the images"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        unet(X, TIME, image_frames=count)


def test_images_in_a_network_that_mixes_frames():
    unet = Unet3D(8, dim_mults=(1, 2), attn_heads=2, resnet_groups=4)
    unet.check_inputs(X, TIME, 0.0, image_frames=0)
    message = (
        "Unet3D: image_frames must be 0 in a network with GroupNorm, whose statistics mix all "
        "frames, got 2; build the network without resnet_groups"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        unet(X, TIME, image_frames=2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            {"con": torch.randn(2, 1, 5)},
            "Unet3D: image_conditions must hold cond, labels, frame_cond, cond_video, "
            "null_cond_mask, cond_mask, got 'con'; check its name, and image_frames, the number "
            "of images",
        ),
        (
            {"cond": [[1.0] * 5]},
            "Unet3D: image_conditions['cond'] must be a tensor of real numbers of shape "
            "(2, 1, 5), got list; give one condition per image",
        ),
        (
            {"cond": torch.randn(2, 5)},
            "Unet3D: image_conditions['cond'] must have the shape (2, 1, 5), got (2, 5); give one "
            "condition per image",
        ),
        (
            {"labels": torch.tensor([1, 2])},
            "Unet3D: image_conditions['labels'] must have the shape (2, 1), got (2,); give one "
            "condition per image",
        ),
        (
            {"labels": torch.tensor([[1], [4]])},
            "Unet3D: labels must be from 0 to 3, or -1 for no class, got 1 to 4; number the "
            "classes from 0, or build the network with more num_classes",
        ),
        (
            {"frame_cond": torch.randn(2, 3, 6)},
            "Unet3D: image_conditions['frame_cond'] must have the shape (2, 1, 6), got (2, 3, 6); "
            "give one condition per image",
        ),
        (
            {"cond_video": torch.randn(2, 2, 8, 8)},
            "Unet3D: image_conditions['cond_video'] must have the shape (2, 2, 1, 8, 8), got "
            "(2, 2, 8, 8); give one condition per image",
        ),
        (
            {"null_cond_mask": torch.tensor([True, False])},
            "Unet3D: image_conditions['null_cond_mask'] must have the shape (2, 1), got (2,); "
            "give one condition per image",
        ),
    ],
)
def test_conditions_of_images_that_do_not_fit(images, message):
    unet = Unet3D(8, dim_mults=(1,), cond_dim=5, num_classes=4, frame_cond_dim=6, cond_channels=2)
    with pytest.raises(ValueError, match=exactly(message)):
        unet(X, TIME, null_cond_prob=1.0, image_frames=1, image_conditions=images)


def test_conditions_of_images_that_a_network_does_not_take(unet):
    message = (
        "Unet3D: this network was built without classes, so image_conditions['labels'] must be "
        "None, got Tensor; build it with num_classes"
    )
    labels = {"labels": torch.zeros(2, 1, dtype=torch.long)}
    with pytest.raises(ValueError, match=exactly(message)):
        unet(X, TIME, image_frames=1, image_conditions=labels)
    mask = {"null_cond_mask": torch.zeros(2, 1, dtype=torch.bool)}
    with pytest.raises(
        ValueError, match=r"without cond, so image_conditions\[.null_cond_mask.\] mu"
    ):
        unet(X, TIME, image_frames=1, image_conditions=mask)


def test_conditions_of_images_without_images(conditional):
    message = (
        "Unet3D: image_conditions must hold nothing without images, got 'cond'; check its name, "
        "and image_frames, the number of images"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        conditional(X, TIME, torch.randn(2, 3), image_conditions={"cond": torch.randn(2, 1, 3)})
