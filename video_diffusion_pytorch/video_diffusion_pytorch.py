"""The reference's inner module: all names that can be imported from it in version 0.7.0.

It has no `__all__`, so that scripts with `import *` also get the names that it imports itself.
"""

# ruff: noqa: F401

import copy
import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from einops_exts import check_shape, rearrange_many
from rotary_embedding_torch import RotaryEmbedding
from torch import einsum, nn
from torch.cuda.amp import GradScaler, autocast
from torch.optim import Adam
from torch.utils import data
from tqdm import tqdm

from video_diffusion_pytorch.data.dataset import Dataset, cast_num_frames
from video_diffusion_pytorch.data.video_file import (
    CHANNELS_TO_MODE,
    gif_to_tensor,
    seek_all_images,
    video_tensor_to_gif,
)
from video_diffusion_pytorch.diffusion.conditioning import is_list_str
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.noise_schedule import cosine_beta_schedule, extract
from video_diffusion_pytorch.diffusion.value_range import normalize_img, unnormalize_img
from video_diffusion_pytorch.model.attention import Attention, SpatialLinearAttention
from video_diffusion_pytorch.model.blocks import (
    Block,
    Downsample,
    LayerNorm,
    ResnetBlock,
    RMSNorm,
    Upsample,
)
from video_diffusion_pytorch.model.conditioning import prob_mask_like
from video_diffusion_pytorch.model.embeddings import RelativePositionBias, SinusoidalPosEmb
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.reference.legacy import (
    EinopsToAndFrom,
    LazyModule,
    PreNorm,
    Residual,
    cycle,
    default,
    exists,
    identity,
    is_odd,
    num_to_groups,
)
from video_diffusion_pytorch.text import BERT_MODEL_DIM, bert_embed, tokenize
from video_diffusion_pytorch.training.ema import EMA
from video_diffusion_pytorch.training.trainer import Trainer, noop

# not needed by the library
Image = LazyModule("PIL.Image")
T = LazyModule("torchvision.transforms")
utils = LazyModule("torchvision.utils")
