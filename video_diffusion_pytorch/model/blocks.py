"""Convolutions, norms and residual blocks, and the views of videos that layers compute on."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.model.cpu_kernels import is_eager_on_cpu, unit_rms

# A factor and a summand
ScaleShift = tuple[Tensor, Tensor]

# So small that it only keeps a frame of zeros from becoming 0/0
_RMS_EPS = 1e-24


# How frames continue beyond their edges: in height and in width, each one of `PADDING_MODES`
Padding = tuple[str, str]
PADDING_MODES = ("zeros", "circular", "replicate", "reflect")
ZEROS: Padding = ("zeros", "zeros")


class FramewiseConv(nn.Conv3d):
    """A 1×k×k convolution with the parameters of `nn.Conv3d`, run as a 2-D one over the frames.

    Args:
        in_channels: As in `nn.Conv3d`, and so those up to `padding`.
        out_channels: Likewise.
        kernel_size: Likewise.
        stride: Likewise.
        padding: Likewise; in height and width it is what `mode` says.
        mode: How frames continue beyond their edges.

    Differs from the reference: it calls Conv3d itself, which is slower on every device and
    gave wrong results in bf16 in some cuDNN releases (pytorch/pytorch#163539).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        mode: Padding = ZEROS,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(b, c, f, h, w)` to `(b, out, f, h', w')`."""
        assert not isinstance(self.padding, str)
        (_, tall, wide), (_, *stride) = self.padding, self.stride
        images = frames_as_images(input)
        # zeros are cheaper inside of the convolution
        inside = [
            n if mode == "zeros" else 0 for n, mode in zip((tall, wide), self.mode, strict=True)
        ]
        tall, wide = tall - inside[0], wide - inside[1]
        images = pad_images(images, tall, tall, wide, wide, self.mode)
        y = F.conv2d(images, self.weight.squeeze(2), self.bias, stride, inside)
        return images_as_frames(y, input.shape[0])


class FramewiseConvTranspose(nn.ConvTranspose3d):
    """The transposed counterpart of `FramewiseConv`, with the same arguments."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        mode: Padding = ZEROS,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.mode = mode

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Maps `(b, c, f, h, w)` to `(b, out, f, h', w')`; `output_size` must be None."""
        assert output_size is None
        assert not isinstance(self.padding, str)
        (_, *padding), (_, *stride) = self.padding, self.stride
        # one more pixel contributes to the output's edges; what it adds to their outside is cropped
        tall, wide = (int(mode != "zeros") for mode in self.mode)
        images = pad_images(frames_as_images(input), tall, tall, wide, wide, self.mode)
        cropped = [padding[0] + tall * stride[0], padding[1] + wide * stride[1]]
        y = F.conv_transpose2d(images, self.weight.squeeze(2), self.bias, stride, cropped)
        return images_as_frames(y, input.shape[0])


def pad_images(
    images: Tensor, above: int, below: int, left: int, right: int, mode: Padding
) -> Tensor:
    """Continues images beyond their edges.

    Args:
        images: `(n, c, h, w)`.
        above: Pixels to add there; likewise `below`, `left` and `right`.
        below: Likewise.
        left: Likewise.
        right: Likewise.
        mode: How images continue, above and below by the first, left and right by the second.

    Example:
        >>> row = torch.arange(1.0, 4).view(1, 1, 1, 3)
        >>> pad_images(row, 0, 0, 1, 2, ("zeros", "circular")).tolist()
        [[[[3.0, 1.0, 2.0, 3.0, 1.0, 2.0]]]]
    """
    images = _continued(images, 2, above, below, mode[0])
    return _continued(images, 3, left, right, mode[1])


def _continued(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Continues `(b, c, h, w)` along an axis.

    In parts that are joined: those of `F.pad` lose the memory format, and some of its gradients on
    a GPU are not deterministic.
    """
    n = x.shape[axis]
    if not (before or after):
        return x
    if mode == "zeros":
        sizes = (0, 0, before, after) if axis == 2 else (before, after, 0, 0)
        return F.pad(x, sizes)
    if mode == "circular":
        start, end = x.narrow(axis, n - before, before), x.narrow(axis, 0, after)
    elif mode == "replicate":
        start, end = (
            x.narrow(axis, place, 1).repeat_interleave(count, axis)
            for place, count in ((0, before), (n - 1, after))
        )
    else:
        # without the edge itself
        start = x.narrow(axis, 1, before).flip(axis)
        end = x.narrow(axis, n - 1 - after, after).flip(axis)
    return torch.cat((start, x, end), dim=axis)


def Downsample(dim: int, mode: Padding = ZEROS) -> nn.Module:
    """A layer that halves height and width: `(b, dim, f, h, w)` to `(b, dim, f, h/2, w/2)`."""
    return FramewiseConv(dim, dim, (1, 4, 4), (1, 2, 2), (0, 1, 1), mode)


def Upsample(dim: int, mode: Padding = ZEROS) -> nn.Module:
    """A layer that doubles height and width: `(b, dim, f, h, w)` to `(b, dim, f, 2h, 2w)`."""
    return FramewiseConvTranspose(dim, dim, (1, 4, 4), (1, 2, 2), (0, 1, 1), mode)


def keep_kernels_channels_last(module: nn.Module) -> None:
    """Gives all 3-D kernels in `module` the memory format of their input videos."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
            # .contiguous() would leave 1×1×1 kernels alone, whose strides DDP then warns of
            weight = torch.empty_like(layer.weight, memory_format=torch.channels_last_3d)
            layer.weight.data = weight.copy_(layer.weight.data)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels, with a gain and no offset (Ba et al. 2016).

    Args:
        dim: Number of channels.
        eps: Added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(1, dim, 1, 1, 1))

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """Normalises `x` over its axis `dim`, by default that of a `(b, c, f, h, w)` video."""
        # a gain in another dtype than x would leave torch's fused kernel
        gain = self.gamma.flatten().to(x.dtype)
        return F.layer_norm(x.movedim(dim, -1), gain.shape, gain, None, self.eps).movedim(-1, dim)


class RMSNorm(nn.Module):
    """Division by the root mean square over the channels, with a gain (Zhang and Sennrich 2019).

    Args:
        dim: Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, 1))

    def forward(self, x: Tensor, scale_shift: ScaleShift | None = None) -> Tensor:
        """Normalises a `(b, c, f, h, w)` video over `c`; `scale_shift` as in `Block`."""
        gain = self.gamma.to(x.dtype)
        if is_eager_on_cpu(x):
            unit = unit_rms(x.movedim(1, -1), _RMS_EPS).movedim(-1, 1)
            # gain and scale in one product
            return unit * gain if scale_shift is None else modulate(unit, scale_shift, gain)
        gain = gain.flatten()
        x = F.rms_norm(x.movedim(1, -1), gain.shape, gain, eps=_RMS_EPS).movedim(-1, 1)
        return x if scale_shift is None else modulate(x, scale_shift)


def modulate(x: Tensor, scale_shift: ScaleShift, gain: Tensor | float = 1.0) -> Tensor:
    """`x * gain * (scale + 1) + shift`."""
    scale, shift = scale_shift
    return torch.addcmul(shift, x, gain * (scale + 1))


class Block(nn.Module):
    """3×3 convolution per frame, normalisation, optional scale and shift, SiLU.

    Args:
        dim: Channels that come in.
        dim_out: Channels that go out.
        groups: None for RMSNorm; a number of groups for GroupNorm, as in versions 0.6.x. A group's
            statistics are those of the whole video, so GroupNorm lets frames see each other.
        mode: How frames continue beyond their edges.
    """

    def __init__(
        self, dim: int, dim_out: int, groups: int | None = None, mode: Padding = ZEROS
    ) -> None:
        super().__init__()
        self.proj = FramewiseConv(dim, dim_out, (1, 3, 3), padding=(0, 1, 1), mode=mode)
        self.norm = RMSNorm(dim_out) if groups is None else nn.GroupNorm(groups, dim_out)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, scale_shift: ScaleShift | None = None) -> Tensor:
        """Maps `(b, dim, f, h, w)` to `(b, dim_out, f, h, w)`.

        Args:
            x: The features.
            scale_shift: Two `(b, dim_out, 1, 1, 1)`, or per frame `(b, dim_out, f, 1, 1)`: the
                normalised features are multiplied by `scale + 1`, then `shift` is added.
        """
        x = self.proj(x)
        if isinstance(self.norm, RMSNorm):
            return self.act(self.norm(x, scale_shift))
        x = self.norm(x)
        return self.act(x if scale_shift is None else modulate(x, scale_shift))


class ResnetBlock(nn.Module):
    """Two `Block`s with a residual connection, the first modulated by the embedding vector.

    Args:
        dim: Channels that come in.
        dim_out: Channels that go out.
        time_emb_dim: Width of the embedding of time and conditions; None for a block without.
        groups: As in `Block`.
        dropout: Share of the features between the two `Block`s that is set to zero in training.
        mode: As in `Block`.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        time_emb_dim: int | None = None,
        groups: int | None = None,
        dropout: float = 0.0,
        mode: Padding = ZEROS,
    ) -> None:
        super().__init__()
        self.mlp = None
        if time_emb_dim is not None:
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_emb_dim, dim_out * 2))
        self.block1 = Block(dim, dim_out, groups, mode)
        self.dropout = nn.Dropout(dropout)
        self.block2 = Block(dim_out, dim_out, groups, mode)
        self.res_conv = FramewiseConv(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """Maps `(b, dim, f, h, w)` to `(b, dim_out, f, h, w)`.

        Args:
            x: The features.
            time_emb: The embedding vector, `(b, time_emb_dim)`, or one per frame,
                `(b, f, time_emb_dim)`.
        """
        scale_shift = None
        if self.mlp is not None:
            emb = self.mlp(time_emb)
            per_frame = emb if emb.ndim == 3 else emb[:, None]
            scale, shift = per_frame.transpose(1, 2)[..., None, None].chunk(2, dim=1)
            scale_shift = scale, shift
        hidden = self.block2(self.dropout(self.block1(x, scale_shift)))
        return hidden + self.res_conv(x)


# Views in torch's own operations: torch.compile traces the parsing of an einops pattern anew at
# each call.


def frames_as_images(x: Tensor) -> Tensor:
    """`b c f h w -> (b f) c h w`; of a channels-last video this is a view."""
    return x.transpose(1, 2).flatten(0, 1)


def images_as_frames(images: Tensor, b: int) -> Tensor:
    """`(b f) c h w -> b c f h w`, the inverse of `frames_as_images`."""
    return images.unflatten(0, (b, -1)).transpose(1, 2)


def frames_as_rows(x: Tensor) -> Tensor:
    """`b c f h w -> (b f) (h w) c`: a row per frame, its pixels in order."""
    return x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)


def rows_as_frames(rows: Tensor, b: int, h: int) -> Tensor:
    """`(b f) (h w) c -> b c f h w`, the inverse of `frames_as_rows`."""
    return rows.unflatten(1, (h, -1)).unflatten(0, (b, -1)).permute(0, 4, 1, 2, 3)


def pixels_as_rows(x: Tensor) -> Tensor:
    """`b c f h w -> (b h w) f c`: a row per pixel, its frames in order."""
    return x.permute(0, 3, 4, 2, 1).flatten(0, 2)


def rows_as_pixels(rows: Tensor, b: int, h: int) -> Tensor:
    """`(b h w) f c -> b c f h w`, the inverse of `pixels_as_rows`."""
    return rows.unflatten(0, (b, h, -1)).permute(0, 4, 3, 1, 2)


def join_channels(x: Tensor, other: Tensor) -> Tensor:
    """Puts the channels of `other` behind those of `x`, both `(b, c, f, h, w)`."""
    # in memory channels are the last axis, where torch.cat has its fast path
    return torch.cat((x.movedim(1, -1), other.movedim(1, -1)), dim=-1).movedim(-1, 1)
