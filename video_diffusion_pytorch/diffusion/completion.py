"""Videos of any length of which a part is known: what comes next, between, around and finer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch.diffusion.filling import Filling
from video_diffusion_pytorch.diffusion.guidance import (
    RECONSTRUCTION_WEIGHT,
    check_mask,
    check_videos,
    expand_mask,
)
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.diffusion.windows import whole_frames


class Completion(Filling):
    """The part of `GaussianDiffusion` that draws what is missing of videos.

    All methods give back known values exactly, and draw the rest to fit them, by replacement and
    reconstruction guidance (Ho et al. 2022, section 3.1). A video longer than the clips of the
    model is drawn window by window.
    """

    def predict(
        self,
        frames: Tensor,
        num_frames: int | None = None,
        *,
        weight: float = RECONSTRUCTION_WEIGHT,
        **sampling: Any,
    ) -> Tensor:
        """Goes on from the first frames of videos.

        Args:
            frames: `(b, c, k, h, w)`, in the range of the clips or uint8.
            num_frames: Frames of the result; None for those of a training clip.
            weight: Weight w_r of the known frames in the guidance; 0 for replacement alone.
            **sampling: As in `extend`.

        Returns:
            `(b, c, num_frames, h, w)`, beginning with `frames`, in the range of `sample`.

        Raises:
            TypeError: If the frames are no such tensor, or a keyword is unknown.
            ValueError: If shapes don't fit the model, frames are not finite, or none is left to
                predict.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> diffusion.predict(torch.rand(2, 3, 1, 16, 16), progress=False).shape
            torch.Size([2, 3, 4, 16, 16])
        """
        length = self.num_frames if num_frames is None else num_frames
        return self._continue("predict", "frames", frames, length, sampling, weight=weight)

    def extend(
        self,
        video: Tensor,
        num_frames: int,
        *,
        overlap: int | None = None,
        weight: float = RECONSTRUCTION_WEIGHT,
        low_resolution: Tensor | None = None,
        frame_factor: int = 1,
        **sampling: Any,
    ) -> Tensor:
        """Continues videos to any length, window by window.

        Args:
            video: `(b, c, f, h, w)` of any length, in the range of the clips or uint8.
            num_frames: Frames of the result.
            overlap: Frames of a window that are known from before it; None for half of them.
            weight: Weight w_r of what is known in the guidance; 0 for replacement alone.
            low_resolution: The whole result, small, which guides every window:
                `(b, c, ceil(num_frames / frame_factor), h', w')`; None for none.
            frame_factor: It has every `frame_factor`-th frame of the result, from the first on.
            **sampling: As in `sample`, without `batch_size` and `first_frames`. Conditions have a
                row per video; `frame_cond` and `cond_video` have all frames of the result, and are
                cut. `guidance` of your own guides each window. A model with `given_frames` is
                told those of each window. A seed's streams go on from window to window.

        Returns:
            `(b, c, num_frames, h, w)`, beginning with `video`, in the range of `sample`.

        Raises:
            TypeError: If the video is no such tensor, or a keyword is unknown.
            ValueError: If shapes don't fit the model, known values are not finite, no frame is
                left to draw, or the overlap does not leave any, or does not give what a model with
                `given_frames` is told.
            RuntimeError: If a window is to go on from frames that the model has drawn, and these
                are not finite.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> first = diffusion.sample(batch_size=2, progress=False)
            >>> diffusion.extend(first, num_frames=10, seed=0, progress=False).shape
            torch.Size([2, 3, 10, 16, 16])
        """
        low = None
        if low_resolution is not None:
            num_frames = whole_frames("extend: num_frames", num_frames)
            given = (low_resolution, frame_factor, num_frames, weight)
            low = self._low("extend", "low_resolution", *given, sampling)
        elif frame_factor != 1:
            raise ValueError(
                "extend: frame_factor is that of low_resolution, which must then be given, got "
                f"{shown(frame_factor)} and None; leave it out, or see interpolate_frames"
            )
        return self._continue(
            "extend", "video", video, num_frames, sampling, overlap=overlap, weight=weight, low=low
        )

    def interpolate_frames(
        self,
        video: Tensor,
        factor: int,
        *,
        overlap: int | None = None,
        weight: float = RECONSTRUCTION_WEIGHT,
        **sampling: Any,
    ) -> Tensor:
        """Draws the frames between those of videos, for a model of clips at the higher rate.

        Args:
            video: `(b, c, f, h, w)`, at least two frames, in the range of the clips or uint8.
            factor: How many times as many frames there are in the same time, at least 2.
            overlap: As in `extend`; None for half a window, or what lets it reach the given frames
                on both sides of those it draws.
            weight: Weight w_r of the known frames in the guidance; 0 for replacement alone.
            **sampling: As in `extend`.

        Returns:
            `(b, c, (f - 1) * factor + 1, h, w)`, the given frames at every `factor`-th place, in
            the range of `sample`.

        Raises:
            TypeError: If the video is no such tensor, or a keyword is unknown.
            ValueError: If shapes don't fit the model, or no window has room for two given frames.
        """
        video = self._as_result("interpolate_frames: video", video, sampling.get("image_size"))
        factor, longest = whole_frames("interpolate_frames: factor", factor), self.num_frames - 1
        if not 2 <= factor <= longest:
            raise ValueError(
                f"interpolate_frames: factor must be from 2 to {longest}, so that a clip of the "
                f"model has two given frames, got {factor}; interpolate twice, or with a model of "
                "longer clips"
            )
        if video.shape[2] < 2:
            raise ValueError(
                "interpolate_frames: video must have at least 2 frames, got 1; give those to draw "
                "frames between"
            )
        num_frames = (video.shape[2] - 1) * factor + 1
        if overlap is None:
            overlap = min(self.num_frames // 2, self.num_frames - factor)
        whole = video.new_zeros(*video.shape[:2], num_frames, *video.shape[3:])
        whole[:, :, ::factor] = video
        known = _of_frames(torch.arange(num_frames) % factor == 0, whole)
        return self._fill(
            "interpolate_frames", whole, known, sampling, overlap=overlap, weight=weight
        )

    def upsample(
        self,
        video: Tensor,
        image_size: int | tuple[int, int] | None = None,
        *,
        frame_factor: int = 1,
        overlap: int | None = None,
        weight: float = RECONSTRUCTION_WEIGHT,
        **sampling: Any,
    ) -> Tensor:
        """Draws videos at a higher resolution, for a model of clips at that resolution.

        Args:
            video: `(b, c, f, h', w')` of any length, in the range of the clips or uint8.
            image_size: Height and width of the result, an int or `(h, w)`; None for those of the
                training clips.
            frame_factor: How many times as many frames there are in the same time.
            overlap: As in `extend`.
            weight: Weight w_r of the low resolution in the guidance, for each pixel of the result
                that a small one is made of.
            **sampling: As in `extend`.

        Returns:
            `(b, c, (f - 1) * frame_factor + 1, h, w)` in the range of `sample`, which, shrunk
            bilinearly and with every `frame_factor`-th frame, is close to `video`.

        Raises:
            TypeError: If the video is no such tensor, or a keyword is unknown.
            ValueError: If shapes don't fit the model, there is nothing to make larger, the weight
                is not positive, or the model has `given_frames`: it takes `extend`, with
                `low_resolution`.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> diffusion.upsample(torch.rand(1, 3, 4, 8, 8), frame_factor=2, progress=False).shape
            torch.Size([1, 3, 7, 16, 16])
        """
        if image_size is not None:
            sampling["image_size"] = image_size
        check_videos("upsample: video", video)
        frame_factor = whole_frames("upsample: frame_factor", frame_factor)
        num_frames = (video.shape[2] - 1) * frame_factor + 1
        low = self._low("upsample", "video", video, frame_factor, num_frames, weight, sampling)
        b, c, f, *size_of_low = low.video.shape
        _, _, *size = self._shape_of_sample(None, image_size)
        if size_of_low == size and f == num_frames:
            raise ValueError(
                f"upsample: video must be smaller than the result, {size[0]} x {size[1]}, or have "
                f"fewer frames than it, {f}, got both alike and nothing to draw; give a greater "
                "image_size, or a greater frame_factor for at least 2 frames"
            )
        whole = low.video.new_zeros(b, c, num_frames, *size)
        known = _of_frames(torch.zeros(num_frames, dtype=torch.bool), whole)
        return self._fill(
            "upsample", whole, known, sampling, overlap=overlap, weight=weight, low=low
        )

    def inpaint(
        self,
        video: Tensor,
        mask: Tensor,
        *,
        overlap: int | None = None,
        weight: float = RECONSTRUCTION_WEIGHT,
        **sampling: Any,
    ) -> Tensor:
        """Draws the missing part of videos anew.

        Args:
            video: `(b, c, f, h, w)` of any length, in the range of the clips or uint8. What it
                holds outside the known part does not matter, be it NaN.
            mask: Boolean, **true where the video is known** and kept, false where it is made anew:
                for each value `(b, c, f, h, w)`, with 1 for an axis along which it is the same; or
                by frame and pixel `(f, h, w)`, by pixel `(h, w)`, or by frame `(f,)`.
            overlap: As in `extend`.
            weight: Weight w_r of the known part in the guidance; 0 for replacement alone.
            **sampling: As in `extend`.

        Returns:
            `(b, c, f, h, w)`, equal to `video` where the mask is true, in the range of `sample`.

        Raises:
            TypeError: If video or mask are no such tensors, or a keyword is unknown.
            ValueError: If shapes don't fit each other or the model.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> video, kept = torch.rand(1, 3, 4, 16, 16), torch.ones(16, 16, dtype=torch.bool)
            >>> kept[4:8, 4:8] = False
            >>> torch.equal(diffusion.inpaint(video, kept, progress=False)[..., 8:], video[..., 8:])
            True
        """
        video = self._as_result("inpaint: video", video, sampling.get("image_size"))
        check_mask("inpaint: mask", mask)
        known = expand_mask("inpaint: mask", mask.to(video.device), video.shape)
        known = known.expand(-1, -1, video.shape[2], -1, -1).clone()
        video = torch.where(known, video, 0.0)
        return self._fill("inpaint", video, known, sampling, overlap=overlap, weight=weight)

    def _continue(
        self,
        call: str,
        name: str,
        video: Any,
        num_frames: int,
        sampling: dict[str, Any],
        **how: Any,
    ) -> Tensor:
        """Draws what comes behind a video; further arguments as in `_fill`."""
        video = self._as_result(f"{call}: {name}", video, sampling.get("image_size"))
        k, num_frames = video.shape[2], whole_frames(f"{call}: num_frames", num_frames)
        if num_frames <= k:
            raise ValueError(
                f"{call}: num_frames must be more than the {k} of {name}, got {num_frames}; ask "
                "for more, or give fewer"
            )
        whole = F.pad(video, (0, 0, 0, 0, 0, num_frames - k))
        known = _of_frames(torch.arange(num_frames) < k, whole)
        return self._fill(call, whole, known, sampling, **{"overlap": None, **how})


def _of_frames(known: Tensor, video: Tensor) -> Tensor:
    """A mask by frame `(f,)`, as `_fill` takes it."""
    return known.view(1, 1, -1, 1, 1).to(video.device)
