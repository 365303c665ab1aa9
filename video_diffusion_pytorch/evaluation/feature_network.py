"""Feature networks: any network of the user, or fixed random convolutions."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.arguments import as_image_size, plain_range

Bound = float | Sequence[float]

RESIZES = ("bilinear", "bicubic", "nearest")
"""Filters that resize frames, the first two with antialiasing."""

_LAYOUT = "bcfhw"


class FeatureNetwork:
    """A network that computes a row of features for each video, or for each frame.

    Args:
        network: A TorchScript file, a module, or any function of a tensor. A file is a program:
            load only files whose origin is known.
        name: Identifies the network in a protocol; None for the SHA-256 of the file or of the
            module's weights.
        size: Height and width of its input in pixels, an int or `(h, w)`; None for those of the
            videos.
        resize: Filter that resizes frames to `size`: `"bilinear"` or `"bicubic"`, both with
            antialiasing, or `"nearest"`.
        value_range: `(low, high)`, its values for 0 and 1, such as `(-1, 1)`; each a number or one
            per channel. For a network of `(x - mean) / std` they are `-mean / std` and
            `(1 - mean) / std`.
        channels: Channels of its input, to which grey videos are repeated; None for those of the
            videos.
        layout: Order of its axes, the letters of `"bcfhw"`; without `f` for a network of images,
            which gets single frames.
        arguments: Further keywords of its call, such as `{"return_features": True}`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is out of range, the file is not TorchScript, or a function has
            no name.

    Example:
        >>> network = FeatureNetwork(lambda x: x.mean(dim=(2, 3, 4)), name="mean", channels=3)
        >>> network(torch.rand(2, 1, 4, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | Callable[..., Any],
        *,
        name: str | None = None,
        size: int | tuple[int, int] | None = None,
        resize: str = "bilinear",
        value_range: tuple[Bound, Bound] = (0.0, 1.0),
        channels: int | None = 3,
        layout: str = _LAYOUT,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if sorted(layout) not in (sorted(_LAYOUT), sorted("bchw")) or layout[0] != "b":
            raise ValueError(
                "FeatureNetwork: layout must have the letters of 'bcfhw', or 'bchw' for a network "
                f"of images, and begin with b, got {layout!r}; give for example 'bfchw'"
            )
        if resize not in RESIZES:
            raise ValueError(
                f"FeatureNetwork: resize must be one of {', '.join(RESIZES)}, got {resize!r}; "
                "choose one of them"
            )
        self.size = None if size is None else as_image_size(size, "FeatureNetwork: size")
        self.resize, self.layout, self.channels = resize, layout, channels
        self.value_range = plain_range(value_range, channels, "FeatureNetwork: value_range")
        self.arguments = dict(arguments or {})
        self.network: Callable[..., Any]
        if isinstance(network, (str, os.PathLike)):
            self.network, self.identity = _load(Path(network))
        elif isinstance(network, nn.Module):
            self.network, self.identity = network.eval(), _hash_of_weights(network)
        else:
            self.network, self.identity = network, {}
        if name is not None:
            self.identity["name"] = name
        if not self.identity:
            raise ValueError(
                "FeatureNetwork: a function must have a name, which identifies it in results, got "
                "none; pass for example name='i3d'"
            )

    @property
    def is_of_frames(self) -> bool:
        """Whether it is a network of images, which gets single frames."""
        return "f" not in self.layout

    @property
    def protocol(self) -> dict[str, Any]:
        """Description of the network in a result, in plain values."""
        return {
            **self.identity,
            "size": None if self.size is None else list(self.size),
            "resize": None if self.size is None else self.resize,
            "value_range": [list(b) if isinstance(b, tuple) else b for b in self.value_range],
            "channels": self.channels,
            "layout": self.layout,
            "arguments": self.arguments,
        }

    def to(self, device: torch.device | str) -> FeatureNetwork:
        """Moves a network with weights to a device."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Computes the features of videos in [0, 1].

        Args:
            videos: `(b, c, f, h, w)`.

        Returns:
            `(b, d)`; `(b, f, d)` for a network of images.

        Raises:
            ValueError: If the network does not take the videos, or does not return a row of finite
                features for each.
        """
        if videos.ndim != 5 or not videos.is_floating_point():
            raise ValueError(
                "FeatureNetwork: videos must be floating-point, (b, c, f, h, w) in [0, 1], got "
                f"{videos.dtype} of shape {tuple(videos.shape)}"
            )
        b, _, f, _, _ = videos.shape
        if not self.is_of_frames:
            return self._rows(self._ready(videos), b)
        pictures = videos.movedim(2, 1).flatten(0, 1)[:, :, None]
        return self._rows(self._ready(pictures), b * f).unflatten(0, (b, f))

    def _ready(self, videos: Tensor) -> Tensor:
        """Converts videos to the channels, size, range and layout of the network's input."""
        videos = videos.float()
        if self.channels is not None and videos.shape[1] != self.channels:
            if videos.shape[1] != 1:
                raise ValueError(
                    f"FeatureNetwork: videos must have the {self.channels} channels of the "
                    f"network, or 1, got {videos.shape[1]}; give a network of such videos, and its "
                    "number of channels"
                )
            videos = videos.expand(-1, self.channels, -1, -1, -1)
        if self.size is not None and tuple(videos.shape[-2:]) != self.size:
            videos = self._scaled(videos, self.size)
        low, high = (videos.new_tensor(bound).view(-1, 1, 1, 1) for bound in self.value_range)
        videos = low + videos * (high - low)
        if self.is_of_frames:
            videos = videos[:, :, 0]
        named = _LAYOUT.replace("f", "") if self.is_of_frames else _LAYOUT
        return videos.permute([named.index(axis) for axis in self.layout]).contiguous()

    def _scaled(self, videos: Tensor, size: tuple[int, int]) -> Tensor:
        frames = videos.movedim(2, 1).flatten(0, 1)
        if self.resize == "nearest":
            scaled = F.interpolate(frames, size=size, mode="nearest-exact")
        else:
            scaled = F.interpolate(frames, size=size, mode=self.resize, antialias=True)
        return scaled.unflatten(0, (len(videos), -1)).movedim(1, 2)

    def _rows(self, ready: Tensor, count: int) -> Tensor:
        try:
            found = self.network(ready, **self.arguments)
        except (RuntimeError, IndexError, torch.jit.Error) as error:
            raise ValueError(
                "FeatureNetwork: the network must take videos of shape "
                f"{tuple(ready.shape)} ({self.layout}), got {_last_line(error)}; set its size, "
                "layout, channels and arguments"
            ) from error
        shape = tuple(found.shape) if isinstance(found, Tensor) else ()
        if len(shape) < 2 or shape[0] != count or found[0].numel() != max(shape[1:]):
            raise ValueError(
                f"FeatureNetwork: the network must return a tensor with a row for each of {count}, "
                f"got {f'the shape {shape}' if shape else type(found).__name__}; wrap it in a "
                "module that returns the features alone, averaged over the other axes"
            )
        if not bool(found.isfinite().all()):
            raise ValueError(
                "FeatureNetwork: features must be finite, got NaN or infinite ones; look for such "
                "values in the videos, which a diverged model draws"
            )
        return found.flatten(1).float()


class RandomFeatures(nn.Module):
    """Means and standard deviations of the maps of two random 3-D convolutions.

    They respond to edges, blobs and motion of a few pixels, not to what a video shows. Distances
    between such features compare texture and motion, and cannot be compared with distances between
    features of a trained network.

    Args:
        channels: Channels of the videos.
        width: Number of features, a multiple of 4.
        seed: Seed of the kernels. Distances of different seeds cannot be compared.

    Example:
        >>> RandomFeatures(channels=3)(torch.rand(2, 3, 8, 16, 16)).shape
        torch.Size([2, 64])
    """

    def __init__(self, channels: int, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.width = width
        maps = width // 4
        generator = torch.Generator().manual_seed(seed)
        shapes = {"near": (maps, channels, 3, 5, 5), "far": (maps, maps, 3, 3, 3)}
        for name, shape in shapes.items():
            kernel = torch.randn(shape, generator=generator, device="cpu")
            # responds to contrast rather than brightness, with unit gain
            kernel = kernel - kernel.mean(dim=(1, 2, 3, 4), keepdim=True)
            kernel = kernel / kernel.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
            self.register_buffer(name, kernel)

    def forward(self, videos: Tensor) -> Tensor:
        """Computes the features of videos in [0, 1].

        Args:
            videos: `(b, c, f, h, w)`.

        Returns:
            `(b, width)`.
        """
        near = F.leaky_relu(F.conv3d(videos, self.get_buffer("near"), padding=(1, 2, 2)), 0.2)
        far = F.conv3d(near, self.get_buffer("far"), stride=(1, 2, 2), padding=1)
        maps = [near.flatten(2), F.leaky_relu(far, 0.2).flatten(2)]
        moments = [(m.mean(dim=-1), m.std(dim=-1, correction=0)) for m in maps]
        return torch.cat([moment for pair in moments for moment in pair], dim=1)


def random_features(channels: int) -> FeatureNetwork:
    """The feature network that needs no file: `RandomFeatures` of videos as they are.

    Args:
        channels: Channels of the videos.
    """
    network = RandomFeatures(channels)
    name = f"random 3-D convolutions, untrained ({network.width} features, seed 0)"
    return FeatureNetwork(network, name=name, channels=None)


def _load(file: Path) -> tuple[Callable[..., Any], dict[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(
            f"FeatureNetwork: expected a TorchScript file at {file}, found none; check the path"
        )
    try:
        with warnings.catch_warnings():
            # newer versions of torch deprecate TorchScript
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(file), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"FeatureNetwork: {file} must be a TorchScript file, got one that torch.jit.load "
            f"cannot read ({_last_line(error)}); write it with torch.jit.script(network).save"
        ) from error
    return network, {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _hash_of_weights(network: nn.Module) -> dict[str, Any]:
    found = hashlib.sha256(type(network).__qualname__.encode())
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {"sha256": found.hexdigest()}


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__
