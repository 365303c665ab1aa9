import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif


@pytest.fixture
def clips(tmp_path):
    """A folder of 12 gifs of 3 frames of noise, 8 x 8."""
    folder = tmp_path / "clips"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        video = torch.rand(1, 3, 8, 8, generator=generator)
        video_tensor_to_gif(video, folder / f"{i:02}.gif")
    return folder


@pytest.fixture
def make_trainer(clips, tmp_path):
    """Makes small trainers, all with the same weights to begin with."""

    def make(trainer_class=Trainer, cond_dim=None, **options):
        torch.manual_seed(1)
        unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, cond_dim=cond_dim)
        diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2)
        options = {
            "train_batch_size": 2,
            "train_lr": 1e-2,
            "train_num_steps": 4,
            "step_start_ema": 2,
            "update_ema_every": 1,
            "save_and_sample_every": 2,
            "num_sample_rows": 2,
            "results_folder": tmp_path / "results",
            "device": "cpu",
            "num_workers": 0,
            **options,
        }
        return trainer_class(diffusion, clips, **options)

    return make
