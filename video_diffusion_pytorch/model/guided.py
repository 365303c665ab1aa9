"""Beside the network's pass: the same without conditions, and what guidance makes of the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.conditions import (
    CONDITIONS,
    given,
    masks_of,
    null_like,
    stack_rows,
    to_one_length,
    with_masks,
)
from video_diffusion_pytorch.model.conditions import Conditioned
from video_diffusion_pytorch.model.masks import focus_mask


class Guided(Conditioned):
    """The half of `Unet3D` that samplers call."""

    def forward_with_cond_scale(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        *,
        cond_scale: float = 2.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
        labels: Tensor | None = None,
        frame_cond: Tensor | None = None,
        cond_video: Tensor | None = None,
        null_cond_mask: Tensor | None = None,
        cond_mask: Tensor | None = None,
        negative: Mapping[str, Tensor] | None = None,
        guidance_rescale: float = 0.0,
        **kwargs: Any,
    ) -> Tensor:
        """Classifier-free guidance (Ho et al. 2022, eq. 6), in one pass over both halves.

        Args:
            x: Noisy videos, `(b, channels, f, h, w)`.
            time: Time steps, `(b,)`.
            cond: As in `forward`, and so the other conditions.
            cond_scale: 1 is without guidance, 0 without all conditions; the paper's w is
                `cond_scale - 1`.
            focus_present_mask: As in `forward`.
            prob_focus_present: As in `forward`.
            labels: As in `forward`.
            frame_cond: As in `forward`.
            cond_video: As in `forward`.
            null_cond_mask: As in `forward`.
            cond_mask: As in `forward`.
            negative: Conditions, by keyword, that guidance leads away from: in the unconditional
                half they take the places of null values. Those not named stay null there. Of each
                there must be a condition as well. Without effect if `cond_scale` is 1.
            guidance_rescale: How far, from 0 to 1, each guided video gets back the standard
                deviation of the conditional one, which guidance raises (Lin et al. 2023, eq. 14
                to 16). Without effect if `cond_scale` is 1.
            **kwargs: Further arguments of a subclass's `forward`; tensors have `b` rows.

        Returns:
            `null + (conditional - null) * cond_scale`, of the shape of `forward`'s output.

        Raises:
            ValueError: As in `forward`, and if `negative` or `guidance_rescale` don't fit.
        """
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(
                f"Unet3D: guidance_rescale must be from 0 to 1, got {guidance_rescale}; 0 leaves "
                "guidance as it is, 0.7 is usual"
            )
        focus = focus_mask(focus_present_mask, prob_focus_present, x)
        # a subclass's forward need not know those that are not used
        conditions: dict[str, Any] = given(
            {
                "cond": cond,
                "labels": labels,
                "frame_cond": frame_cond,
                "cond_video": cond_video,
                "null_cond_mask": null_cond_mask,
                "cond_mask": cond_mask,
            }
        )
        instead = given(negative or {})
        if instead:
            self._check_negative(x, time, instead, conditions)
        if cond_scale == 1 or not self.has_cond:
            return self(x, time, **{"cond": None} | conditions, focus_present_mask=focus, **kwargs)
        self.check_inputs(x, time, 0.0, **conditions)
        conditions, null = self._both_halves(conditions, instead)
        if cond_scale == 0 and not guidance_rescale:
            return self(x, time, **null, focus_present_mask=focus, **kwargs)

        # both halves in one pass
        twice = {k: torch.cat((v, v)) if torch.is_tensor(v) else v for k, v in kwargs.items()}
        both = self(
            torch.cat((x, x)),
            torch.cat((time, time)),
            **{name: stack_rows(value, null[name]) for name, value in conditions.items()},
            focus_present_mask=None if focus is None else torch.cat((focus, focus)),
            **twice,
        )
        conditional, unconditional = both.chunk(2)
        guided = unconditional + (conditional - unconditional) * cond_scale
        if not guidance_rescale:
            return guided
        return guided * _rescaling(guided, conditional, guidance_rescale)

    def _check_negative(
        self,
        x: Tensor,
        time: Tensor,
        negative: dict[str, Any],
        conditions: Mapping[str, Any],
    ) -> None:
        """Raises a ValueError unless negative conditions are beside others, and fit the network."""
        known = {*conditions, *masks_of(negative)}
        alone = [name for name in negative if name not in known]
        if alone:
            raise ValueError(
                "Unet3D: negative must hold conditions that the videos have as well, "
                f"{', '.join(conditions) or 'none'}, got {', '.join(alone)}; give the videos "
                "theirs, or leave these out"
            )
        self.check_inputs(x, time, 1.0, **negative)

    def _both_halves(
        self, conditions: dict[str, Any], negative: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditions of the two halves of the pass, under the same names."""
        if self.takes_text_states:
            conditions, negative = with_masks(conditions), with_masks(negative)
            conditions, negative = to_one_length((conditions, negative))
        elif "null_cond_mask" in negative:
            nowhere = torch.zeros_like(negative["null_cond_mask"])
            conditions = {"null_cond_mask": nowhere, **conditions}
        null = {name: self._null(name, value) for name, value in conditions.items()}
        return conditions, null | negative

    def _null(self, name: str, value: Tensor) -> Tensor:
        """The null value of a condition in the shape of `value`."""
        if self.takes_text_states and name in ("cond", "cond_mask"):
            # no sequence of states is a null value: such videos are masked instead
            return value
        if self.takes_text_states and name == "null_cond_mask":
            return torch.ones_like(value)
        null = CONDITIONS[name].null
        return null_like(name, value, getattr(self, null) if isinstance(null, str) else None)


def _rescaling(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """The factor `(b, 1, 1, 1, 1)` that brings a share of the conditional deviation back."""
    wanted, got = (video.flatten(1).float().std(dim=1) for video in (conditional, guided))
    # a video without any contrast stays as it is
    ratio = wanted / got.clamp(min=torch.finfo(torch.float32).tiny)
    return (share * ratio + (1 - share)).to(guided.dtype).view(-1, 1, 1, 1, 1)
