"""Images at the end of videos: what they see and are told, and that no video sees them."""

import pytest
import torch

from video_diffusion_pytorch import Unet3D

EVERY = {"cond_dim": 5, "num_classes": 4, "frame_cond_dim": 6, "cond_channels": 2}
B, F, K = 2, 3, 2


def tiny_unet(**config):
    torch.manual_seed(0)
    unet = Unet3D(8, **{"dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8} | config)
    if unet.null_cond_video is not None:
        torch.nn.init.normal_(unet.null_cond_video)
    return unet


def videos_and_images(k=K, dtype=torch.float32):
    return torch.randn(B, 3, F + k, 8, 8, dtype=dtype), torch.randint(0, 1000, (B,))


def conditions(names=tuple(EVERY)):
    every = {
        "cond_dim": ("cond", torch.randn(B, 5)),
        "num_classes": ("labels", torch.tensor([3, 1])),
        "frame_cond_dim": ("frame_cond", torch.randn(B, F, 6)),
        "cond_channels": ("cond_video", torch.randn(B, 2, F, 8, 8)),
    }
    return dict(every[name] for name in names if name in every)


def image_conditions(names=tuple(EVERY)):
    every = {
        "cond_dim": ("cond", torch.randn(B, K, 5)),
        "num_classes": ("labels", torch.tensor([[0, 2], [-1, 3]])),
        "frame_cond_dim": ("frame_cond", torch.randn(B, K, 6)),
        "cond_channels": ("cond_video", torch.randn(B, 2, K, 8, 8)),
    }
    return dict(every[name] for name in names if name in every)


CONFIGS = pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_sparse_linear_attn": False},
        {"cond_dim": 5},
        {"num_classes": 4},
        {"frame_cond_dim": 6},
        {"cond_channels": 2},
        {"cond_dim": 5, "num_classes": 4},
        {**EVERY, "dim_mults": (1, 2, 4)},
    ],
    ids=lambda config: "-".join(config) or "plain",
)


# in single precision other shapes mean other sums
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12)],
    ids=["single", "double"],
)


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Who sees whom


@CONFIGS
def test_gradients_say_that_nothing_leaks_either_way(config):
    unet = tiny_unet(**config)
    x, time = videos_and_images()
    x.requires_grad_()
    told = {**conditions(config), "image_conditions": image_conditions(config)}
    output = unet(x, time, **told, image_frames=K)
    for frame in range(F + K):
        [gradient] = torch.autograd.grad(output[:, :, frame].square().sum(), x, retain_graph=True)
        seen = gradient.abs().amax(dim=(0, 1, 3, 4)) > 0
        expected = torch.arange(F + K) < F if frame < F else torch.arange(F + K) == frame
        assert torch.equal(seen, expected), frame


@CONFIGS
@DTYPES
@torch.no_grad()
def test_a_video_is_as_it_is_without_images(config, dtype, tolerance):
    unet = tiny_unet(**config).to(dtype)
    x, time = videos_and_images(dtype=dtype)
    told = conditions(config)
    for focus in (None, torch.tensor([True, False])):
        alone = unet(x[:, :, :F], time, **told, focus_present_mask=focus)
        whole = unet(
            x,
            time,
            **told,
            focus_present_mask=focus,
            image_frames=K,
            image_conditions=image_conditions(config),
        )
        assert whole.shape == x.shape
        torch.testing.assert_close(whole[:, :, :F], alone, rtol=0, atol=tolerance)


@CONFIGS
@DTYPES
@pytest.mark.parametrize("is_told", [False, True])
@torch.no_grad()
def test_an_image_is_a_video_of_one_frame(config, is_told, dtype, tolerance):
    unet = tiny_unet(**config).to(dtype)
    x, time = videos_and_images(dtype=dtype)
    of_images = image_conditions(config) if is_told else {}
    whole = unet(x, time, **conditions(config), image_frames=K, image_conditions=of_images)
    for image in range(K):
        single = {
            name: value[:, :, image : image + 1] if name == "cond_video" else value[:, image]
            for name, value in of_images.items()
        }
        if "frame_cond" in single:
            single["frame_cond"] = single["frame_cond"][:, None]
        drop = {} if is_told else {"null_cond_prob": 1.0}
        alone = unet(x[:, :, F + image, None], time, **single, **drop)
        torch.testing.assert_close(whole[:, :, F + image, None], alone, rtol=0, atol=tolerance)


# What they are told


@torch.no_grad()
def test_a_field_for_all_frames_alike_is_not_for_images():
    unet = tiny_unet(cond_channels=2)
    x, time = videos_and_images()
    field = torch.randn(B, 2, 8, 8)
    whole = unet(x, time, cond_video=field, image_frames=K)
    alone = unet(x[:, :, :F], time, cond_video=field)
    torch.testing.assert_close(whole[:, :, :F], alone, rtol=0, atol=1e-5)
    null = unet(x[:, :, F, None], time, null_cond_prob=1.0)
    torch.testing.assert_close(whole[:, :, F, None], null, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_video_that_loses_its_conditions_loses_its_images_too():
    unet = tiny_unet(**EVERY)
    x, time = (t[:1].expand(40, *t.shape[1:]) for t in videos_and_images())
    told = {n: v[:1].expand(40, *v.shape[1:]) for n, v in conditions().items()}
    images = {n: v[:1].expand(40, *v.shape[1:]) for n, v in image_conditions().items()}
    output = unet(x, time, **told, null_cond_prob=0.5, image_frames=K, image_conditions=images)
    kept = unet(x, time, **told, image_frames=K, image_conditions=images)
    null = unet(x, time, null_cond_prob=1.0, image_frames=K)
    is_kept = torch.isclose(output, kept, atol=1e-5).all(dim=(1, 3, 4))
    is_null = torch.isclose(output, null, atol=1e-5).all(dim=(1, 3, 4))
    assert torch.equal(is_kept, ~is_null)
    assert (is_kept == is_kept[:, :1]).all()
    assert 0 < is_kept[:, 0].sum() < 40


@torch.no_grad()
def test_an_image_may_have_no_caption():
    unet = tiny_unet(**EVERY)
    x, time = videos_and_images()
    told, images = conditions(), image_conditions()
    mask = torch.tensor([[True, False], [False, False]])
    output = unet(
        x, time, **told, image_frames=K, image_conditions={**images, "null_cond_mask": mask}
    )
    vectors = torch.where(mask[..., None], unet.null_cond_emb, images["cond"])
    expected = unet(x, time, **told, image_frames=K, image_conditions={**images, "cond": vectors})
    assert torch.equal(output, expected)


def test_blocks_get_a_vector_per_frame_only_where_images_are_told_of():
    cases = (
        ({}, K, (B, 32)),
        ({"cond_channels": 2}, K, (B, 32)),
        ({"cond_dim": 5}, 0, (B, 37)),
        ({"cond_dim": 5}, K, (B, F + K, 37)),
        (EVERY, K, (B, F + K, 37)),
    )
    for config, k, shape in cases:
        unet = tiny_unet(**config)
        shapes = []
        unet.mid_block1.register_forward_pre_hook(lambda _, args, s=shapes: s.append(args[1].shape))
        unet(*videos_and_images(k), **conditions(config), image_frames=k)
        assert shapes == [shape]


def test_all_parameters_learn():
    unet = tiny_unet(**EVERY)
    x, time = videos_and_images()
    output = unet(x, time, **conditions(), image_frames=K)
    output.square().mean().backward()
    without = [n for n, p in unet.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


# How it runs


@pytest.mark.usefixtures("_fresh_compiler")
@torch.no_grad()
def test_it_compiles_as_one_graph():
    unet = tiny_unet(**EVERY, dim_mults=(1,), blocks_per_level=1)
    x, time = videos_and_images()
    call = {
        **conditions(),
        "null_cond_mask": torch.tensor([False, True]),
        "image_frames": K,
        "image_conditions": image_conditions(),
        "focus_present_mask": torch.tensor([True, False]),
    }
    expected = unet(x, time, **call)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, time, **call), expected, rtol=1e-4, atol=1e-5)


def test_the_host_never_waits_for_the_device():
    # there are no numbers on the meta device that it could wait for
    with torch.device("meta"):
        unet = Unet3D(8, dim_mults=(1, 2), attn_heads=2, **EVERY)
        x, time = torch.randn(B, 3, F + K, 8, 8), torch.zeros(B, dtype=torch.long)
        told, images = conditions(), image_conditions()
    output = unet(x, time, **told, null_cond_prob=0.5, image_frames=K, image_conditions=images)
    assert output.is_meta


@torch.no_grad()
def test_other_number_types_give_nearly_the_same():
    unet = tiny_unet(**EVERY)
    x, time = videos_and_images()
    call = {**conditions(), "image_frames": K, "image_conditions": image_conditions()}
    expected = unet(x, time, **call)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = unet(x, time, **call)
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()
