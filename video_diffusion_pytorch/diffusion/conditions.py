"""What goes to the network beside the noisy clip: captions, classes, vectors, fields, frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.condition_tensors import (
    as_tensor,
    captions_as_tensors,
    is_captions,
)
from video_diffusion_pytorch.diffusion.value_range import ValueRanges, check_type


def is_list_str(x: Any) -> bool:
    """Whether `x` is a list or tuple of strings."""
    return isinstance(x, (list, tuple)) and all(isinstance(item, str) for item in x)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    wrapped = getattr(module, "_orig_mod", None)
    if wrapped is None and isinstance(
        module, (nn.DataParallel, nn.parallel.DistributedDataParallel)
    ):
        wrapped = module.module
    return module if wrapped is None else unwrap(wrapped)


def given(**conditions: Any) -> dict[str, Any]:
    """Those that are not None: a denoiser or a subclass need not know the others."""
    return {name: value for name, value in conditions.items() if value is not None}


def show_first_frames(first_frames: Tensor, num_frames: int) -> Tensor:
    """The first frames of a clip, as a network with `cond_video` is told them.

    Args:
        first_frames: In [-1, 1], `(b, c, k, h, w)`.
        num_frames: Frames of the clip, at least `k`.

    Returns:
        `(b, c + 1, num_frames, h, w)`: the frames, and a channel of ones where they are known;
        zeros where not.

    Example:
        >>> shown = show_first_frames(torch.full((1, 3, 2, 4, 4), 0.5), num_frames=6)
        >>> shown[0, :, :, 0, 0].mean(dim=0)
        tensor([0.6250, 0.6250, 0.0000, 0.0000, 0.0000, 0.0000])
    """
    known = torch.ones_like(first_frames[:, :1])
    shown = torch.cat((first_frames, known), dim=1)
    return F.pad(shown, (0, 0, 0, 0, 0, num_frames - first_frames.shape[2]))


class Conditions(ValueRanges):
    """The part of `GaussianDiffusion` that prepares conditions; it documents the arguments."""

    denoise_fn: nn.Module
    text_use_bert_cls: bool
    image_size: int | tuple[int, int]
    num_frames: int
    given_frames: int

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip, `(c, f, h, w)`."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.channels, self.num_frames, height, width

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Keywords of the conditions that training data must give, as far as the network tells."""
        names = getattr(unwrap(self.denoise_fn), "condition_names", ())
        is_own = self._field_channels() != 0
        return tuple(name for name in names if name != "cond_video" or is_own)

    @property
    def takes_text_states(self) -> bool:
        """Whether the network takes captions as sequences of states instead of as vectors."""
        return bool(getattr(unwrap(self.denoise_fn), "takes_text_states", False))

    def _network_time(self, t: Tensor) -> Tensor:
        """Time steps as the network wants them: themselves, or their log-SNR."""
        wanted = getattr(unwrap(self.denoise_fn), "time_input", "step")
        return self.log_snr(t) if wanted == "log_snr" else t

    def _field_channels(self) -> int | None:
        """Channels that the user's own `cond_video` must have; None if the network doesn't tell."""
        total = getattr(unwrap(self.denoise_fn), "cond_channels", None)
        if total is None or not self.given_frames:
            return total
        return total - self.channels - 1

    def _check_given_frames(self) -> None:
        """Raises a ValueError unless the clips and the network have room for the known frames."""
        k = self.given_frames
        if not 0 <= k < self.num_frames:
            raise ValueError(
                f"GaussianDiffusion: given_frames must be from 0 to {self.num_frames - 1}, one "
                f"less than num_frames, got {k}; leave frames to predict"
            )
        free = self._field_channels()
        if k and free is not None and free < 0:
            needed = self.channels + 1
            raise ValueError(
                f"GaussianDiffusion: with given_frames the network must have at least {needed} "
                f"cond_channels, those of a frame and one, got {needed + free}; build it with "
                f"cond_channels={needed}, and more for a cond_video of your own"
            )

    def _ready(self, cond: Any = None, **conditions: Any) -> dict[str, Tensor]:
        """Conditions as tensors on the model's device, captions encoded; twice is as once.

        Args:
            cond: Vectors, states of text, or captions, of which some may be None.
            **conditions: The others, by keyword.

        Returns:
            Those that are given.

        Raises:
            TypeError: If one cannot become a tensor.
            ValueError: If one is a single number, or the masks do not go with captions.
        """
        if is_captions(cond):
            mode = {"states": self.takes_text_states, "use_cls": self.text_use_bert_cls}
            told = captions_as_tensors(cond, conditions, **mode, device=self.betas.device)
            conditions = {**conditions, **told}
            cond = conditions.pop("cond")
        ready = given(cond=cond, **conditions)
        return {name: as_tensor(name, value, self.betas) for name, value in ready.items()}

    def _for_network(
        self,
        x: Tensor,
        clips: Tensor | None = None,
        *,
        cond_video: Any = None,
        first_frames: Any = None,
        **conditions: Any,
    ) -> dict[str, Tensor]:
        """The keywords that the denoiser is called with.

        Args:
            x: Noisy videos, of which only the shape counts.
            clips: Clips in [-1, 1] that known frames are taken from; None to need `first_frames`.
            cond_video: The user's own field.
            first_frames: Known frames, in the range of the clips.
            **conditions: The others, by keyword.
        """
        ready = self._ready(cond_video=cond_video, first_frames=first_frames, **conditions)
        field, frames = ready.pop("cond_video", None), ready.pop("first_frames", None)
        if field is not None:
            field = self._field_to_model_range(field)
        if frames is not None:
            self._check_first_frames(frames, x)
            frames = self._to_model_range(frames)
        elif clips is not None:
            frames = clips[:, :, : self.given_frames]
        if self.given_frames:
            if frames is None:
                raise ValueError(
                    "GaussianDiffusion: this model was built with given_frames, so first_frames "
                    f"of {self.given_frames} frames is expected, got None; pass the beginning of "
                    "each video"
                )
            field = self._join_fields(field, show_first_frames(frames, x.shape[2]))
        return ready if field is None else {**ready, "cond_video": field}

    def _ready_of_images(self, images: Tensor, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        """As `_for_network`, for images at the end of clips: of each condition a row per image.

        Args:
            images: `(b, c, k, h, w)`, of which only the shape counts.
            conditions: `cond` `(b, k, d)` or `(b, k, n, d)`, or `b` lists of `k` captions;
                `cond_mask` `(b, k, n)`, `labels` `(b, k)`, `frame_cond` `(b, k, d)`, `cond_video`
                `(b, n, k, h, w)`, `null_cond_mask` `(b, k)`.
        """
        b, k = images.shape[0], images.shape[2]
        named = dict(conditions)
        rows = named.get("cond")
        if isinstance(rows, (list, tuple)) and rows and all(map(is_captions, rows)):
            mask = named.pop("null_cond_mask", None)
            if mask is not None:
                mask = torch.as_tensor(mask).flatten()
            captions = [caption for row in rows for caption in row]
            told = self._ready(captions, null_cond_mask=mask, cond_mask=named.get("cond_mask"))
            named |= {name: value.reshape(b, k, *value.shape[1:]) for name, value in told.items()}
        ready = self._ready(**named)
        field = ready.pop("cond_video", None)
        if field is None:
            return ready
        field = self._field_to_model_range(field)
        if self.given_frames:
            # no frame of an image is known
            field = self._join_fields(field, show_first_frames(images[:, :, :0], k))
        return {**ready, "cond_video": field}

    def _check_first_frames(self, frames: Tensor, x: Tensor) -> None:
        if not self.given_frames:
            raise ValueError(
                "GaussianDiffusion: this model was built without given_frames, so first_frames "
                f"must be None, got {tuple(frames.shape)}; build and train it with given_frames"
            )
        expected = (*x.shape[:2], self.given_frames, *x.shape[3:])
        if tuple(frames.shape) != expected:
            raise ValueError(
                f"GaussianDiffusion: first_frames must have the shape (b, c, given_frames, h, w) = "
                f"{expected}, got {tuple(frames.shape)}; cut or resize them"
            )
        check_type("first_frames", frames)

    def _join_fields(self, field: Tensor | None, shown: Tensor) -> Tensor:
        """Puts the known frames' channels behind those of the user's own field."""
        b, _, f, h, w = shown.shape
        channels = self._field_channels()
        if channels is None:
            channels = 0 if field is None else field.shape[1]
        if field is None and channels == 0:
            return shown
        if field is not None and field.ndim == 4:
            field = field.unsqueeze(2).expand(-1, -1, f, -1, -1)
        expected = (b, channels, f, h, w)
        if field is None or tuple(field.shape) != expected:
            got = None if field is None else tuple(field.shape)
            raise ValueError(
                f"GaussianDiffusion: cond_video must have the shape {expected}, what the network's "
                f"cond_channels leave beside the known frames, got {got}; give it so, or build the "
                "network with other cond_channels"
            )
        return torch.cat((field.to(shown.dtype), shown), dim=1)
