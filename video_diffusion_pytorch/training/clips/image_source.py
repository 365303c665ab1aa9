"""The images' side of the loop: out of which clips or pictures they are drawn."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.data.condition_files import split_conditions
from video_diffusion_pytorch.data.single_frames import PictureFolder
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.clips.batches import EndlessShuffle, collate, unpack_batch
from video_diffusion_pytorch.training.clips.clip_source import clips_behind, file_key, files_of
from video_diffusion_pytorch.training.clips.image_frames import ImageDraws, draws_from_clips

# Options of the clips that hold for pictures, too
_FOR_PICTURES = ("fit", "crop", "horizontal_flip", "vertical_flip", "axes", "square_pixels")


class ImageSource:
    """The part of a Trainer that knows where images come from; `Trainer` has the attributes."""

    ds: Any
    order: EndlessShuffle
    model: GaussianDiffusion
    image_frames: int
    image_folder: str | os.PathLike[str] | None
    results_folder: Path
    data_options: dict[str, Any]
    _images: ImageDraws | None
    _validated: Set[Any]

    # what a subclass may make differently

    def make_image_dataset(
        self, folder: str | os.PathLike[str], diffusion: GaussianDiffusion
    ) -> Any:
        """The images of `image_folder`: a dataset of clips, of which one frame each is taken."""
        clips = clips_behind(self.ds)
        kinds, _, columns = split_conditions(self.data_options.get("conditions"))
        options = {k: v for k, v in self.data_options.items() if k in _FOR_PICTURES}
        return PictureFolder(
            folder,
            diffusion.image_size,
            diffusion.channels,
            has_captions="caption" in kinds or isinstance(columns.get("cond"), str),
            class_names=() if clips is None else clips.class_names,
            value_range=diffusion.config["value_range"],
            exclude=(self.results_folder,),
            as_uint8=True,
            **options,
        )

    def unpack_batch(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The videos of a batch, and keywords of the diffusion's forward, such as `cond`."""
        return unpack_batch(batch)

    # what the data side asks for

    def _make_images(self, indices: Sequence[int] | None) -> ImageDraws | None:
        """What draws the images of the clips with these indices; None for clips of a stream."""
        if not self.image_frames:
            return None
        check_network(self.model, self.image_frames)
        # where it is not replaced, worker processes do without the Trainer
        is_own = type(self).unpack_batch is not ImageSource.unpack_batch
        unpack = self.unpack_batch if is_own else unpack_batch
        if self.image_folder is not None:
            pictures = self.make_image_dataset(self.image_folder, self.model)
            paths = getattr(pictures, "paths", None)
            apart = {*self._validated}
            if indices is not None:
                apart |= files_of(self.ds).keys() - files_of(self.ds, indices).keys()
            files = [
                [index]
                for index in range(len(pictures))
                if paths is None or file_key(paths[index]) not in apart
            ]
            return ImageDraws(pictures, files, {}, self.image_frames, unpack)
        if indices is None:
            raise ValueError(
                "Trainer: image_frames must come from clips that can be read in any order, got a "
                "stream or a loader; pass image_folder, or give each item its own 'images' "
                "(c, k, h, w) and leave image_frames out"
            )
        return draws_from_clips(self.ds, indices, self.image_frames, unpack)

    def _draw_images(self, count: int) -> list[dict[str, Any]]:
        """Images for the next clips of a stream."""
        assert self._images is not None
        seeds = (self.order.seed_at(self.order.position + i) for i in range(count))
        return collate([self._images.draw(None, seed) for seed in seeds])

    def _check_no_images(self, conditions: Mapping[str, Any]) -> None:
        if self.image_frames and "images" in conditions:
            raise ValueError(
                "Trainer: image_frames must be 0 where the items bring images of their own, got "
                f"{self.image_frames}; leave one of them out"
            )


def check_network(diffusion: GaussianDiffusion, count: int) -> None:
    """Raises a ValueError unless the network takes that many images beside a clip."""
    network: Any = unwrap(diffusion.denoise_fn)
    if "image_frames" not in inspect.signature(network.forward).parameters:
        raise ValueError(
            "Trainer: image_frames must go with a network whose forward takes image_frames, as "
            f"Unet3D's does, got {type(network).__name__}; leave them out, or add the argument"
        )
    if hasattr(network, "check_inputs"):
        c, f, h, w = diffusion.clip_shape
        x = torch.empty(1, c, f + count, h, w, device="meta")
        network.check_inputs(x, torch.zeros(1), 1.0, image_frames=count)
