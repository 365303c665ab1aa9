"""How frames continue beyond their edges, and frames of any size."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.model.attention import shift_in_space
from video_diffusion_pytorch.model.blocks import (
    PADDING_MODES,
    FramewiseConv,
    FramewiseConvTranspose,
)

MIXED = ("replicate", "circular")


def network(**options):
    torch.manual_seed(0)
    options = {"dim": 8, "dim_mults": (1, 2, 4), "attn_heads": 2, "attn_dim_head": 8, **options}
    return Unet3D(**options).double().eval()


def padded(x, n, mode):
    """`(b, c, f, h, w)` with n pixels more on all sides, each axis by its mode."""
    images = x.transpose(1, 2).flatten(0, 1)
    for kind, sides in zip(mode, ((0, 0, n, n), (n, n, 0, 0)), strict=True):
        images = F.pad(images, sides, "constant" if kind == "zeros" else kind)
    return images.unflatten(0, (len(x), -1)).transpose(1, 2)


# Exact: a shift of the frames by whole strides is a shift of the output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token_shift": "both", "full_attn_levels": (1,), "attn_after_each_block": True},
        {"cond_channels": 2, "num_classes": 3},
        {"resnet_groups": 4, "blocks_per_level": 1},
    ],
)
@pytest.mark.parametrize("axes", [(3,), (4,), (3, 4)])
def test_a_periodic_network_commutes_with_rolling(options, axes):
    mode = tuple("circular" if axis in axes else "zeros" for axis in (3, 4))
    unet, stride = network(padding_mode=mode, **options), 4
    x, t = torch.randn(2, 3, 3, 16, 12).double(), torch.tensor([3, 70])
    given = {}
    if "cond_channels" in options:
        given["cond_video"] = torch.randn(2, 2, 3, 16, 12).double()
        given["labels"] = torch.tensor([0, 2])

    def rolled(videos):
        return videos.roll([stride] * len(axes), axes)

    moved = unet(rolled(x), t, **{k: rolled(v) if v.ndim == 5 else v for k, v in given.items()})
    torch.testing.assert_close(moved, rolled(unet(x, t, **given)), rtol=1e-10, atol=1e-10)


def test_a_network_with_other_padding_does_not():
    x, t = torch.randn(1, 3, 2, 16, 16).double(), torch.tensor([3])
    for mode in ("zeros", "replicate", "reflect", ("circular", "zeros")):
        unet = network(padding_mode=mode)
        assert (unet(x.roll(4, 4), t) - unet(x, t).roll(4, 4)).abs().max() > 1e-3, mode


def test_a_mirrored_network_sees_mirrored_frames():
    """A tiling of mirror images is periodic: reflection is the circular padding of such tiles."""
    conv = FramewiseConv(2, 3, (1, 3, 3), padding=(0, 1, 1), mode=("reflect", "reflect"))
    x = torch.randn(1, 2, 1, 5, 6)
    tile = torch.cat((x, x[..., 1:-1, :].flip(3)), dim=3)
    tile = torch.cat((tile, tile[..., 1:-1].flip(4)), dim=4)
    conv.mode = ("circular", "circular")
    whole = conv(tile)[..., :5, :6]
    conv.mode = ("reflect", "reflect")
    torch.testing.assert_close(conv(x), whole)


# The layers, against torch


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_pad_as_torchs_own(mode, stride):
    sizes = ((1, 5, 3), (1, stride, stride), (0, 2, 1))
    ours = FramewiseConv(2, 3, *sizes, mode=(mode, mode))
    theirs = nn.Conv3d(2, 3, *sizes, padding_mode=mode)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 3, 8, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("tall", PADDING_MODES)
@pytest.mark.parametrize("wide", PADDING_MODES)
def test_transposed_convolutions_continue_what_they_double(tall, wide):
    layer = FramewiseConvTranspose(2, 3, (1, 4, 4), (1, 2, 2), (0, 1, 1), mode=(tall, wide))
    x, n = torch.randn(2, 2, 3, 5, 6), 2
    plain = nn.ConvTranspose3d(2, 3, (1, 4, 4), (1, 2, 2), (0, 1, 1))
    plain.load_state_dict(layer.state_dict())
    large = plain(padded(x, n, (tall, wide)))
    torch.testing.assert_close(layer(x), large[..., 2 * n : -2 * n, 2 * n : -2 * n])


@pytest.mark.parametrize("mode", [*[(mode, mode) for mode in PADDING_MODES], MIXED])
def test_shifted_channels_come_from_beyond_the_edges(mode):
    x = torch.randn(2, 17, 3, 4, 5)
    large = shift_in_space(padded(x, 1, mode))[..., 1:-1, 1:-1]
    torch.testing.assert_close(shift_in_space(x, mode), large)


def test_weights_do_not_depend_on_it():
    plain, periodic = network(), network(padding_mode="circular", pad_to_multiple=True)
    periodic.load_state_dict(plain.state_dict())
    assert [*periodic.state_dict()] == [*plain.state_dict()]
    # far from the edges of a large frame nothing changes but by attention
    assert periodic.config["padding_mode"] == "circular"
    assert network(padding_mode=["replicate", "circular"]).config["padding_mode"] == MIXED


# Frames of any size


@pytest.mark.parametrize("mode", ["zeros", "replicate", MIXED])
@pytest.mark.parametrize("size", [(13, 18), (16, 9), (8, 12)])
def test_frames_of_any_size_are_enlarged_and_cropped(mode, size):
    unet = network(padding_mode=mode, pad_to_multiple=True, cond_channels=1)
    plain = network(padding_mode=mode, cond_channels=1)
    x, field = torch.randn(2, 3, 2, *size).double(), torch.randn(2, 1, 2, *size).double()
    t = torch.tensor([3, 70])
    found = unet(x, t, cond_video=field)
    assert found.shape == x.shape
    modes = (mode, mode) if isinstance(mode, str) else mode
    tall, wide = (-n % 4 for n in size)
    top, left = tall // 2, wide // 2
    both = padded(torch.cat((x, field), dim=1), 2, modes)
    both = both[..., 2 - top : 2 + size[0] + tall - top, 2 - left : 2 + size[1] + wide - left]
    large = plain(both[:, :3], t, cond_video=both[:, 3:])
    torch.testing.assert_close(found, large[..., top : top + size[0], left : left + size[1]])


def test_a_model_of_such_frames_learns_and_samples():
    unet = network(pad_to_multiple=True, padding_mode=MIXED).float()
    model = GaussianDiffusion(unet, image_size=(13, 18), num_frames=2, timesteps=4)
    loss = model(torch.rand(2, 3, 2, 13, 18))
    loss.backward()
    grads = [p.grad for p in unet.parameters() if p.requires_grad]
    assert all(grad.isfinite().all() for grad in grads)
    assert model.sample(batch_size=1, progress=False).shape == (1, 3, 2, 13, 18)


# Errors


@pytest.mark.parametrize("mode", ["wrap", ("zeros", "wrap"), ("zeros",), 3, ("zeros",) * 3])
def test_unknown_modes(mode):
    message = (
        "Unet3D: padding_mode must be one of zeros, circular, replicate, reflect, or two of them "
        f"for height and width, got {mode!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Unet3D(8, padding_mode=mode)


@pytest.mark.parametrize(
    ("options", "size", "axis", "least"),
    [
        ({"padding_mode": "reflect"}, (4, 16), "height", 8),
        ({"padding_mode": ("zeros", "reflect"), "dim_mults": (1,)}, (16, 3), "width", 4),
        ({"padding_mode": "circular", "dim_mults": (1,)}, (2, 16), "height", 3),
        ({"padding_mode": "reflect", "pad_to_multiple": True}, (4, 16), "height", 5),
    ],
)
def test_frames_that_are_too_small(options, size, axis, least):
    mode = options["padding_mode"]
    unet = network(**options)
    got = size[0] if axis == "height" else size[1]
    kind = mode if isinstance(mode, str) else mode[axis == "width"]
    message = (
        f"Unet3D: with padding_mode {kind!r} the {axis} must be at least {least} pixels, got "
        f"{got}; take larger frames, fewer dim_mults or padding_mode='replicate'"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        unet(torch.randn(1, 3, 2, *size).double(), torch.tensor([1]))


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("mults", [(1,), (1, 2), (1, 2, 4)])
@pytest.mark.parametrize("fits", [False, True])
def test_the_least_size_is_enough_and_needed(mode, mults, fits):
    """Each size that a layer could not pad gives our own error, and no other size does."""
    unet, multiple = (
        network(padding_mode=mode, pad_to_multiple=fits, dim_mults=mults),
        2 ** (len(mults) - 1),
    )
    for size in range(1, 17):
        x = torch.randn(1, 3, 1, size, size).double()
        added = -size % multiple if fits else 0
        # of the first convolution, and of the one of 3 x 3 at the coarsest resolution
        whole, coarsest = size + added, (size + added) // multiple
        fitted = {"circular": whole >= 3, "reflect": whole > 3 and coarsest > 1}.get(mode, True)
        inside = {"circular": size >= (added + 1) // 2, "reflect": size > (added + 1) // 2}
        is_right = fitted and inside.get(mode, True) and (fits or not size % multiple)
        if is_right:
            assert unet(x, torch.tensor([1])).shape == x.shape
        else:
            with pytest.raises(ValueError, match="Unet3D: "):
                unet(x, torch.tensor([1]))


def test_sizes_that_cannot_be_halved():
    message = (
        "Unet3D: height and width must be multiples of 4 for 3 resolutions, got 13 x 18; resize, "
        "use fewer dim_mults, or pass pad_to_multiple=True"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network()(torch.randn(1, 3, 2, 13, 18).double(), torch.tensor([1]))


def test_a_shared_model_keeps_its_padding(tmp_path):
    torch.manual_seed(0)
    unet = Unet3D(
        8,
        dim_mults=(1, 2),
        attn_heads=1,
        padding_mode=("replicate", "circular"),
        pad_to_multiple=True,
    )
    unet.save_pretrained(tmp_path)
    again = Unet3D.from_pretrained(tmp_path)
    assert again.config["padding_mode"] in (("replicate", "circular"), ["replicate", "circular"])
    x, t = torch.randn(1, 3, 2, 7, 10), torch.tensor([5])
    torch.testing.assert_close(again.eval()(x, t), unet.eval()(x, t))
