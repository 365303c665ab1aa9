"""Train your own video diffusion models (Ho et al. 2022, arXiv 2204.03458)."""

# `text` and `video_diffusion_pytorch` are the modules that the reference has, bound as it does
from video_diffusion_pytorch import text, video_diffusion_pytorch
from video_diffusion_pytorch.data.video_file import read_video
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.guidance import Guidance, KnownRegion
from video_diffusion_pytorch.diffusion.measurement import Measurement
from video_diffusion_pytorch.diffusion.sampler import Sampler
from video_diffusion_pytorch.diffusion.samplers import DDIM, DDPM, Ancestral, DPMPlusPlus
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.notebook import show
from video_diffusion_pytorch.pretrained import load_diffusion
from video_diffusion_pytorch.reference.state_dict import to_reference_state_dict
from video_diffusion_pytorch.training.evaluate import evaluate_diffusion
from video_diffusion_pytorch.training.trainer import Trainer
from video_diffusion_pytorch.version import __version__

__all__ = [
    "DDIM",
    "DDPM",
    "Ancestral",
    "DPMPlusPlus",
    "Evaluation",
    "GaussianDiffusion",
    "Guidance",
    "KnownRegion",
    "Measurement",
    "Sampler",
    "Trainer",
    "Unet3D",
    "__version__",
    "evaluate_diffusion",
    "load_diffusion",
    "read_video",
    "show",
    "text",
    "to_reference_state_dict",
    "video_diffusion_pytorch",
    "write_video",
]
