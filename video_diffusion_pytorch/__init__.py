"""Train your own video diffusion models (Ho et al. 2022, arXiv 2204.03458)."""

# first, as the imports below take seconds, in which Ctrl+C may come
from video_diffusion_pytorch import startup as startup

# isort: split
# `text` and `video_diffusion_pytorch` are modules, as in the reference
from video_diffusion_pytorch import text, video_diffusion_pytorch
from video_diffusion_pytorch.clip_file import prepare_clip
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.video_file import (
    gif_to_tensor,
    read_video,
    video_tensor_to_gif,
)
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.guidance import (
    Guidance,
    KnownFrames,
    KnownRegion,
    Measurement,
)
from video_diffusion_pytorch.diffusion.samplers import (
    DDIM,
    DDPM,
    Ancestral,
    DPMPlusPlus,
    Euler,
    Heun,
)
from video_diffusion_pytorch.diffusion.sampling_steps import Sampler
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.notebook import show
from video_diffusion_pytorch.pretrained import load_diffusion, posthoc_average
from video_diffusion_pytorch.reference.legacy import num_to_groups
from video_diffusion_pytorch.reference.state_dict import to_reference_state_dict
from video_diffusion_pytorch.training.evaluate import evaluate_diffusion
from video_diffusion_pytorch.training.trainer import Trainer
from video_diffusion_pytorch.version import __version__

__all__ = [
    "DDIM",
    "DDPM",
    "Ancestral",
    "DPMPlusPlus",
    "Dataset",
    "Euler",
    "Evaluation",
    "GaussianDiffusion",
    "Guidance",
    "Heun",
    "KnownFrames",
    "KnownRegion",
    "Measurement",
    "Sampler",
    "Trainer",
    "Unet3D",
    "__version__",
    "evaluate_diffusion",
    "gif_to_tensor",
    "load_diffusion",
    "num_to_groups",
    "posthoc_average",
    "prepare_clip",
    "read_video",
    "show",
    "text",
    "to_reference_state_dict",
    "video_diffusion_pytorch",
    "video_tensor_to_gif",
    "write_video",
]
