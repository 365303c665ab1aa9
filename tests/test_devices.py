"""Scripts that set a default device train and sample on the model's own device all the same."""

import pytest
import torch

from video_diffusion_pytorch import Dataset, GaussianDiffusion, Trainer, Unet3D, write_video

SHAPE = (2, 1, 4, 8, 8)


@pytest.fixture
def meta_by_default():
    """Tensors that name no device have no data."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def clips():
    return torch.rand(SHAPE, device="cpu")


@pytest.fixture(scope="module")
def forecaster():
    network = {"num_classes": 3, "cond_channels": 2, "frame_cond_dim": 2, "attn_heads": 2}
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, **network)
    settings = {"timesteps": 20, "given_frames": 1, "value_range": (0, 2)}
    return GaussianDiffusion(unet, image_size=8, num_frames=4, **settings)


def conditions(frames=4):
    return {
        "labels": torch.tensor([0, 1], device="cpu"),
        "frame_cond": torch.rand(2, frames, 2, device="cpu"),
    }


@pytest.mark.parametrize("objective", ["pred_noise", "pred_v", "pred_x_start"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid", "continuous_cosine"])
def test_losses_and_samples_of_every_objective_and_schedule(request, objective, schedule):
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=2, resnet_groups=4)
    settings = {"timesteps": 20, "min_snr_gamma": 5, "beta_schedule": schedule}
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=4, objective=objective, **settings)
    request.getfixturevalue("meta_by_default")
    diffusion(clips()).backward()
    videos = diffusion.sample(batch_size=2, steps=3, dynamic_thres_percentile=0.9, progress=False)
    assert videos.device.type == "cpu"


@pytest.mark.usefixtures("meta_by_default")
def test_the_loss_with_images_and_focus(forecaster):
    labels = torch.zeros(2, 2, dtype=torch.long, device="cpu")
    forecaster(
        clips(),
        **conditions(),
        images=clips()[:, :, :2],
        image_conditions={"labels": labels},
        prob_focus_present=0.5,
    ).backward()


@pytest.mark.usefixtures("meta_by_default")
@pytest.mark.parametrize("sampler", ["ddpm", "ancestral", "ddim", "dpm++", "dpm++sde"])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_sampler(forecaster, sampler, seed):
    options = {"sampler": sampler, "steps": None if sampler == "ddpm" else 3, "seed": seed}
    options |= {"cond_scale": 2.0, "first_frames": clips()[:, :, :1], "progress": False}
    assert forecaster.sample(**conditions(), **options).device.type == "cpu"


@pytest.mark.usefixtures("meta_by_default")
def test_completions(forecaster):
    options = {"steps": 2, "progress": False}
    assert forecaster.extend(clips(), 6, **conditions(6), **options).device.type == "cpu"
    known = torch.ones(8, 8, dtype=torch.bool, device="cpu")
    forecaster.inpaint(clips(), known, **conditions(), **options)


def test_completions_without_conditions(request):
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=2)
    plain = GaussianDiffusion(unet, image_size=8, num_frames=4, timesteps=4)
    request.getfixturevalue("meta_by_default")
    plain.interpolate_frames(clips()[:, :, :2], 2, steps=2, progress=False)
    plain.upsample(clips()[..., :4, :4], steps=2, progress=False)


def test_a_training_run(request, tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(4):
        write_video(torch.rand(3, 6, 8, 8), tmp_path / "clips" / f"{i}.gif")
    unet = Unet3D(dim=8, dim_mults=(1,), attn_heads=2)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=4, timesteps=4)
    request.getfixturevalue("meta_by_default")
    options = {"clip_start": "random", "horizontal_flip": True, "validation_split": 0.3}
    trainer = Trainer(
        diffusion,
        tmp_path / "clips",
        results_folder=tmp_path / "results",
        device="cpu",
        num_workers=0,
        train_batch_size=2,
        train_num_steps=2,
        save_and_sample_every=2,
        num_sample_rows=1,
        image_frames=1,
        **options,
    )
    trainer.train()
    assert (tmp_path / "results" / "1.gif").exists()
    assert Dataset(tmp_path / "clips", 8)[0].device.type == "cpu"
