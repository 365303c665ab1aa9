"""Features of videos: of a network of the user's, or of fixed random convolutions."""

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
from video_diffusion_pytorch.evaluation.frechet import FeatureStatistics

Bound = float | Sequence[float]

RESIZES = ("bilinear", "bicubic", "nearest")
"""Filters that frames are scaled with; the first two without aliasing."""

_LAYOUT = "bcfhw"


class FeatureNetwork:
    """A network that gives a row of numbers for each video, or for each frame.

    Args:
        network: A TorchScript file, a module, or any function of a tensor. A file is a program:
            load those only whose origin is known.
        name: Tells it apart from others in a protocol. None for the SHA-256 of the file, or of the
            module's weights.
        size: Height and width in pixels that it wants, an int or `(h, w)`; None for the videos'.
        resize: How frames are scaled to it: `"bilinear"` or `"bicubic"`, both with antialiasing,
            or `"nearest"`.
        value_range: `(low, high)`, what it wants for 0 and for 1, each a number or one per channel.
            `(-1, 1)`, for one. Of a network that wants `(x - mean) / std` they are `-mean / std`
            and `(1 - mean) / std`.
        channels: How many it wants; grey videos are repeated to as many. None for the videos'.
        layout: Order of its axes, the letters of `"bcfhw"`; without the `f` it is a network of
            pictures, and gets one frame at a time.
        arguments: Further keywords of its call, such as `{"return_features": True}`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is outside its range, the file is no TorchScript, or a function
            has no name.

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
        _check_layout(layout)
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
                "FeatureNetwork: a function must have a name, which tells its results from those "
                "of others, got none; pass name='i3d', for one"
            )

    @property
    def is_of_frames(self) -> bool:
        """Whether it looks at one frame at a time."""
        return "f" not in self.layout

    @property
    def protocol(self) -> dict[str, Any]:
        """What a result must tell of it, in plain values."""
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
        """Moves a network that has weights."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """The features of videos in [0, 1].

        Args:
            videos: `(b, c, f, h, w)`.

        Returns:
            `(b, d)`, of a network of pictures `(b, f, d)`.

        Raises:
            TypeError: If the network gives no tensor.
            ValueError: If the videos' channels are not the network's, it cannot be called with
                videos so made ready, or does not give a row for each.
        """
        b, _, f, _, _ = videos.shape
        if not self.is_of_frames:
            return self._rows(self._ready(videos), b)
        pictures = videos.movedim(2, 1).flatten(0, 1)[:, :, None]
        return self._rows(self._ready(pictures), b * f).unflatten(0, (b, f))

    def _ready(self, videos: Tensor) -> Tensor:
        """Videos in the channels, size, range and layout of the network."""
        videos = videos.float()
        if self.channels is not None and videos.shape[1] != self.channels:
            if videos.shape[1] != 1:
                raise ValueError(
                    f"FeatureNetwork: videos must have the {self.channels} channels that the "
                    f"network wants, or 1, got {videos.shape[1]}; give a network of such videos, "
                    "and its number of channels"
                )
            videos = videos.expand(-1, self.channels, -1, -1, -1)
        if self.size is not None and tuple(videos.shape[-2:]) != self.size:
            videos = self._scaled(videos, self.size)
        low, high = (_column(bound, videos) for bound in self.value_range)
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
                f"{tuple(ready.shape)} ({self.layout}), got {_last_line(error)}; give the size, "
                "layout, channels and arguments that it wants"
            ) from error
        if not isinstance(found, Tensor):
            raise TypeError(
                f"FeatureNetwork: the network must give a tensor, got a {type(found).__name__}; "
                "wrap it in a module that returns the features alone, and script that"
            )
        if found.ndim < 2 or len(found) != count or found[0].numel() != max(found.shape[1:]):
            raise ValueError(
                "FeatureNetwork: the network must give a row of features for each of "
                f"{count}, got the shape {tuple(found.shape)}; wrap it in a module that averages "
                "over the other axes"
            )
        return found.flatten(1).float()


class RandomFeatures(nn.Module):
    """Means and standard deviations of the maps of two random 3-D convolutions.

    They see edges, blobs and motion of a few pixels, and know nothing of what a video shows:
    distances between such features tell sets of videos apart by their texture and motion, and
    are not to be compared with distances between features of a trained network.

    Args:
        channels: Channels of the videos.
        width: Number of features; a multiple of 4.
        seed: Of the kernels. Distances of different seeds are not to be compared.

    Raises:
        ValueError: If `width` is no positive multiple of 4.

    Example:
        >>> RandomFeatures(channels=3)(torch.rand(2, 3, 8, 16, 16)).shape
        torch.Size([2, 64])
    """

    def __init__(self, channels: int, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(
                f"RandomFeatures: width must be a positive multiple of 4, got {width}; give 64, "
                "for one"
            )
        self.width = width
        maps = width // 4
        generator = torch.Generator().manual_seed(seed)
        shapes = {"near": (maps, channels, 3, 5, 5), "far": (maps, maps, 3, 3, 3)}
        for name, shape in shapes.items():
            kernel = torch.randn(shape, generator=generator)
            # each sees contrasts rather than brightness, at unit gain
            kernel = kernel - kernel.mean(dim=(1, 2, 3, 4), keepdim=True)
            kernel = kernel / kernel.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
            self.register_buffer(name, kernel)

    def forward(self, videos: Tensor) -> Tensor:
        """Features of videos in [0, 1].

        Args:
            videos: `(b, c, f, h, w)`.

        Returns:
            `(b, width)`.
        """
        near = F.leaky_relu(F.conv3d(videos, self.get_buffer("near"), padding=(1, 2, 2)), 0.2)
        far = F.conv3d(near, self.get_buffer("far"), stride=(1, 2, 2), padding=1)
        maps = [near.flatten(2), F.leaky_relu(far, 0.2).flatten(2)]
        return torch.cat([f(m) for m in maps for f in (_mean, _deviation)], dim=1)


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=-1)


def _deviation(maps: Tensor) -> Tensor:
    return maps.std(dim=-1, correction=0)


def random_features(channels: int) -> FeatureNetwork:
    """The features that need no file: `RandomFeatures`, of videos as they are.

    Args:
        channels: Channels of the videos.
    """
    network = RandomFeatures(channels)
    name = f"random 3-D convolutions, untrained ({network.width} features, seed 0)"
    return FeatureNetwork(network, name=name, channels=None)


@torch.no_grad()
def random_feature_statistics(videos: Tensor, max_batch: int = 64) -> FeatureStatistics:
    """Mean and covariance of the random features of videos in [0, 1], `(b, c, f, h, w)`.

    Args:
        videos: At least two, to have a covariance.
        max_batch: How many are looked at at a time.

    Example:
        >>> from video_diffusion_pytorch.arguments import as_image_size, plain_range
    from video_diffusion_pytorch.evaluation.frechet import frechet_distance
        >>> statistics = random_feature_statistics(torch.rand(66, 1, 4, 8, 8))
        >>> frechet_distance(statistics, statistics) < 1e-6
        True
    """
    network = RandomFeatures(videos.shape[1]).to(videos.device)
    found = FeatureStatistics(network.width)
    for part in videos.split(max_batch):
        found.add(network(part))
    return found


def _load(file: Path) -> tuple[Callable[..., Any], dict[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(
            f"FeatureNetwork: expected a TorchScript file at {file}, found none; check the path"
        )
    try:
        with warnings.catch_warnings():
            # newer versions of torch say that TorchScript is no longer developed
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


def _check_layout(layout: str) -> None:
    if sorted(layout) not in (sorted(_LAYOUT), sorted("bchw")) or layout[0] != "b":
        raise ValueError(
            "FeatureNetwork: layout must have the letters of 'bcfhw', or without f of a network of "
            f"pictures, and begin with b, got {layout!r}; give for example 'bfchw'"
        )


def _column(bound: float | tuple[float, ...], videos: Tensor) -> Tensor:
    return videos.new_tensor(bound).view(-1, 1, 1, 1)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__
