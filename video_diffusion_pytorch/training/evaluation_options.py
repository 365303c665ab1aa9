"""Beside the loop: what an evaluation measures, by which networks, and how it draws videos."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.samplers import make_sampler
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork, random_features
from video_diffusion_pytorch.evaluation.frame_similarity import SIMILARITIES, FrameSimilarity
from video_diffusion_pytorch.evaluation.video_scores import Networks

SAMPLER = "dpm++sde"
"""Draws an evaluation's videos, unless another one is asked for: in 20 steps."""

# The distance's name among the scores
FVD, RANDOM = "fvd", "random_feature_distance"


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and how; all of it goes into the protocol of a result.

    Attributes:
        features: Gives features of videos, for the Frechet video distance `fvd`: I3D, C3D, VideoMAE
            or any other. None for `RandomFeatures`, whose distance is called
            `random_feature_distance`, as it is no FVD.
        classes: Classifies videos, for the inception score; None for none.
        frame_features: Gives features of pictures, for FID-avg and FID-first; None for none.
        frame_classes: Classifies pictures, for IS-avg and IS-first; None for none.
        class_outputs: What the classifiers give, `"logits"` or `"probabilities"`.
        splits: Parts that inception scores are means over.
        given_frames: How many first frames of a clip are given, and the others predicted, of a
            model that was not trained with `given_frames`, by `GaussianDiffusion.predict`; 0 for
            none. A model that was trained with them predicts in any case.
        similarities: Measures of predicted frames: `"psnr"`, `"ssim"`, both or none.
        lpips: A further one: `"alex"`, `"vgg"` or `"squeeze"`, whose weights torchvision fetches
            when they are first used; a TorchScript file; or a function. None for none.
        lpips_name: Of a `lpips` that is a function.
        clips: The most real clips to compare with, spread over all.
        count: Number of videos to draw; None for as many as there are real clips.
        seed: Of the videos: number `n` is the same in any batch and any number of processes.
        sampler: As in `GaussianDiffusion.sample`.
        steps: Number of steps; None for the model's `sampling_timesteps`, or what suits the
            sampler.
        cond_scale: Strength of the guidance by conditions; 1 is without.
        max_batch: The most videos that are drawn, or looked at, at a time.
        value_range: `(low, high)`, the clips' values that are 0 and 1 to the networks; None for
            the model's `value_range`, or [0, 1].
        statistics: A file that keeps what the real clips came to, and is written where there is
            none; None for no file.

    Raises:
        ValueError: If a number is outside its range, or an option unknown.
    """

    features: FeatureNetwork | None = None
    classes: FeatureNetwork | None = None
    frame_features: FeatureNetwork | None = None
    frame_classes: FeatureNetwork | None = None
    class_outputs: str = "logits"
    splits: int = 10
    given_frames: int = 0
    similarities: Sequence[str] = SIMILARITIES
    lpips: str | os.PathLike[str] | Callable[..., Any] | None = None
    lpips_name: str | None = None
    clips: int = 2048
    count: int | None = None
    seed: int = 0
    sampler: Any = SAMPLER
    steps: int | None = None
    cond_scale: float = 1.0
    max_batch: int = 16
    value_range: tuple[Any, Any] | None = None
    statistics: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        least = {"clips": 2, "count": 2, "max_batch": 1, "seed": 0, "given_frames": 0}
        for name, at_least in least.items():
            value = getattr(self, name)
            if value is not None and value < at_least:
                raise ValueError(
                    f"Evaluation: {name} must be at least {at_least}, got {value}; give more"
                )
        make_sampler(self.sampler)

    def networks(self, channels: int) -> Networks:
        """What looks at the videos.

        Args:
            channels: Of the videos.
        """
        is_random = self.features is None
        features = random_features(channels) if self.features is None else self.features
        return Networks(
            features,
            RANDOM if is_random else FVD,
            self.classes,
            self.frame_features,
            self.frame_classes,
            self.splits,
            self.class_outputs,
        )

    def frames_to_give(self, diffusion: GaussianDiffusion) -> int:
        """How many first frames of a clip the model is given.

        Raises:
            ValueError: If they are not those it was trained with, or leave none to predict.
        """
        own, asked = diffusion.given_frames, self.given_frames
        if own and asked not in (0, own):
            raise ValueError(
                f"Evaluation: given_frames must be those that the model was trained with, {own}, "
                f"got {asked}; leave it out"
            )
        if asked >= diffusion.num_frames:
            raise ValueError(
                f"Evaluation: given_frames must leave some of {diffusion.num_frames} frames to "
                f"predict, got {asked}; give fewer"
            )
        return own or asked

    def similarity(self, diffusion: GaussianDiffusion) -> FrameSimilarity | None:
        """What predicted frames are measured by; None where none are predicted."""
        if not self.frames_to_give(diffusion):
            return None
        c, _, h, w = diffusion.clip_shape
        return FrameSimilarity(
            self.similarities, lpips=self.lpips, size=(h, w), channels=c, name=self.lpips_name
        )

    def sampling(self, diffusion: GaussianDiffusion) -> dict[str, Any]:
        """Keywords of `diffusion.sample` that are the same for all videos."""
        steps: Any = self.steps or diffusion.sampling_timesteps
        if self.sampler == "ddpm" or steps is None:
            most = diffusion.num_timesteps
            steps = min(make_sampler(self.sampler).default_steps or most, most)
        told = {"sampler": self.sampler, "steps": steps, "progress": False}
        return {**told, "cond_scale": self.cond_scale} if diffusion.condition_names else told

    def sampling_protocol(self, diffusion: GaussianDiffusion) -> dict[str, Any]:
        """What a result must tell of how videos are drawn, in plain values."""
        k = self.frames_to_give(diffusion)
        kind = "prediction" if k else "generation"
        sampling = self.sampling(diffusion)
        return {
            "task": f"{kind} by guidance" if k and not diffusion.given_frames else kind,
            "given_frames": k,
            "seed": self.seed,
            "sampler": _in_words(self.sampler, diffusion),
            "steps": sampling["steps"],
            "cond_scale": sampling.get("cond_scale"),
            "conditions": list(diffusion.condition_names),
        }


def _in_words(sampler: Any, diffusion: GaussianDiffusion) -> str:
    """A sampler with what it was made with."""
    if sampler == "ddim":
        return f"ddim, eta={diffusion.ddim_sampling_eta}"
    if isinstance(sampler, str):
        return sampler
    own = {**vars(sampler), **dict(getattr(sampler, "config", {}))}
    plain = {n: v for n, v in own.items() if isinstance(v, (bool, int, float, str))}
    told = (f"{n}={v!r}" for n, v in sorted(plain.items()) if not n.startswith("_"))
    return f"{type(sampler).__name__}({', '.join(told)})"
