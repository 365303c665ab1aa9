"""Scripts that set a default device train and sample on the model's own device all the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import (
    Dataset,
    GaussianDiffusion,
    Trainer,
    Unet3D,
    load_diffusion,
    text,
    write_video,
)
from video_diffusion_pytorch.clip_file import prepare_clip
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.diffusion.noise_schedule import SCHEDULES
from video_diffusion_pytorch.evaluation import frame_classifier
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.notebook import show
from video_diffusion_pytorch.training.evaluate import evaluate_diffusion

TINY_BERT = Path(__file__).parent / "golden" / "tiny_bert"
SHAPE = (2, 1, 4, 8, 8)
OWN_BETAS = [0.1, 0.2, 0.3, 0.4]


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


@pytest.fixture
def _tiny_bert():
    text.set_text_encoder(TINY_BERT)
    yield
    text.set_text_encoder()


def plain(**settings):
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=2)
    sizes = {"image_size": 8, "num_frames": 4, "timesteps": 4}
    return GaussianDiffusion(unet, **{**sizes, **settings})


def devices(model):
    return {value.device.type for value in (*model.parameters(), *model.buffers())}


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
    diffusion = plain()
    request.getfixturevalue("meta_by_default")
    diffusion.interpolate_frames(clips()[:, :, :2], 2, steps=2, progress=False)
    diffusion.upsample(clips()[..., :4, :4], steps=2, progress=False)


# Models


@pytest.mark.parametrize(
    "kind",
    [
        *({"beta_schedule": schedule} for schedule in (*SCHEDULES, OWN_BETAS)),
        {"objective": "flow", "time_shift": 3},
        {"objective": "edm"},
    ],
)
def test_a_model_is_built_on_the_default_device(kind):
    with torch.device("meta"):
        diffusion = plain(**kind, value_range=(0, 2))
    assert devices(diffusion) == {"meta"}


def test_a_state_dict_is_loaded_to_the_devices_of_the_model(request):
    diffusion, other = plain(), plain()
    request.getfixturevalue("meta_by_default")
    diffusion.load_state_dict(other.state_dict())
    weights = (model.denoise_fn.init_conv.weight for model in (diffusion, other))
    assert torch.equal(*weights)


def test_models_are_loaded_to_the_cpu(request, tmp_path):
    diffusion = plain(beta_schedule=OWN_BETAS, value_range=(0, 2))
    diffusion.save_pretrained(tmp_path / "shared")
    items = [torch.rand(SHAPE[1:])] * 4
    folder = {"results_folder": tmp_path / "results", "num_workers": 0}
    Trainer(diffusion, dataset=items, device="cpu", train_batch_size=2, **folder).save(1)
    request.getfixturevalue("meta_by_default")
    for again in (
        GaussianDiffusion.from_pretrained(tmp_path / "shared"),
        load_diffusion(tmp_path / "shared"),
        load_diffusion(tmp_path / "results"),
    ):
        assert devices(again) == {"cpu"}
        assert torch.equal(again.denoise_fn.init_conv.weight, diffusion.denoise_fn.init_conv.weight)


# Runs


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


@pytest.mark.usefixtures("_tiny_bert")
def test_captions(request):
    captions = ["a whale", ""]
    vectors, (states, mask) = text.embed_captions(captions), text.encode_captions(captions)
    text.set_text_encoder(TINY_BERT)  # to be loaded again
    request.getfixturevalue("meta_by_default")
    assert torch.equal(text.embed_captions(captions), vectors)
    again = text.encode_captions(captions)
    assert torch.equal(again[0], states)
    assert torch.equal(again[1], mask)


@pytest.mark.usefixtures("_tiny_bert")
def test_a_training_run_on_captions(request, tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(4):
        write_video(torch.rand(3, 4, 8, 8), tmp_path / "clips" / f"{i}.gif")
        (tmp_path / "clips" / f"{i}.txt").write_text(f"whale {i}")
    unet = Unet3D(dim=8, dim_mults=(1,), attn_heads=2, cond_dim=32, num_text_tokens=2)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=4, timesteps=4)
    request.getfixturevalue("meta_by_default")
    # the second run reads the states that the first one wrote
    for number in range(2):
        trainer = Trainer(
            diffusion,
            tmp_path / "clips",
            results_folder=tmp_path / f"{number}",
            device="cpu",
            num_workers=0,
            train_batch_size=2,
            train_num_steps=1,
            save_and_sample_every=1,
            num_sample_rows=1,
            held_out=0,
            conditions="caption",
            image_frames=1,
            validation_split=0.5,
            evaluate_every=1,
            evaluation=Evaluation(clips=2, count=2, steps=1),
        )
        # two videos are few for a distance
        with pytest.warns(UserWarning, match="frechet_distance"):
            trainer.train()
    video = torch.rand(2, 3, 4, 8, 8, device="cpu")
    images = {"cond": [["a whale"], [None]], "null_cond_mask": [[False], [True]]}
    keywords = {"null_cond_mask": [True, False], "image_conditions": images}
    diffusion(video, ["a whale", None], images=video[:, :, :1], **keywords).backward()


@pytest.mark.filterwarnings("ignore:frechet_distance", "ignore:FrameClassifier. more than")
@pytest.mark.parametrize("given_frames", [0, 1])
def test_evaluation(request, tmp_path, monkeypatch, given_frames):
    monkeypatch.setattr(frame_classifier, "_STEPS", 2)
    diffusion = plain(image_size=12, value_range=(0, 2))
    items = [{"video": 2 * torch.rand(1, 4, 12, 12), "labels": n % 2} for n in range(4)]
    request.getfixturevalue("meta_by_default")
    options = {"given_frames": given_frames, "statistics": tmp_path / "real.pt", "labels": True}
    evaluation = Evaluation(steps=1, **options)
    first, second = (
        evaluate_diffusion(diffusion, items, evaluation, progress=False, num_workers=0)["scores"]
        for _ in range(2)
    )
    assert first == second


@pytest.mark.usefixtures("meta_by_default")
def test_a_grid_in_a_notebook():
    assert "image/webp" in show(np.zeros(SHAPE))._repr_html_()


def test_a_file_to_complete(request, tmp_path):
    # wider than the model's clips: it gets borders of the lowest value
    np.save(tmp_path / "clip.npy", np.full((1, 4, 4, 8), 2.0, np.float32))
    diffusion = plain(value_range=(1, 2))
    diffusion.clip_info = ClipInfo(settings={"fit": "contain"})
    request.getfixturevalue("meta_by_default")
    clip = prepare_clip(tmp_path / "clip.npy", diffusion)
    assert clip.device.type == "cpu"
    assert clip.amin() == 1
