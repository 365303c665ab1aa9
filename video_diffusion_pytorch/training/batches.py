"""Which clips make the next batch, and what of a batch is the video and what its condition."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EndlessShuffle(Sampler[int]):
    """Shuffled epochs without end, which begin at `position`.

    The order is a function of the seed, so that a resumed run goes on with the clip at which the
    interrupted one stopped.

    Args:
        dataset: The clips, of which only the number counts.
        seed: Seed of the order.

    Attributes:
        position: Number of clips, over all epochs, that training has had. The trainer counts.
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        self.dataset, self.seed, self.position = dataset, seed, 0

    def __iter__(self) -> Iterator[int]:
        """Yields indices of clips."""
        length = len(self.dataset)
        epoch, offset = divmod(self.position, length)
        while True:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            yield from torch.randperm(length, generator=generator)[offset:].tolist()
            epoch, offset = epoch + 1, 0


class Endless(Iterator[Any]):
    """The batches of a loader, from the beginning again where it ends or was interrupted.

    Args:
        loader: Anything that can be gone through more than once.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._batches: Iterator[Any] | None = None

    def restart(self) -> None:
        """Lets the next batch be the first of the loader."""
        self._batches = None

    def __next__(self) -> Any:
        """Gives the next batch.

        Raises:
            ValueError: If the loader gives none.
        """
        for _ in range(2):
            if self._batches is None:
                self._batches = iter(self.loader)
            try:
                return next(self._batches)
            except StopIteration:
                self.restart()
            except BaseException:
                # an interrupted reader is at its end, and would give no further batch
                self.restart()
                raise
        raise ValueError(
            "Trainer: the data loader must give at least one batch, got none; check that the "
            "dataset is not empty, and not smaller than a batch with drop_last"
        )


def unpack_batch(batch: Any) -> tuple[Tensor, dict[str, Any]]:
    """Splits a batch into videos and the keywords that go with them to the diffusion.

    Args:
        batch: The videos `(b, c, f, h, w)`; or a tuple or list of videos and conditions; or a dict
            with the key `video`, whose other keys are keywords of `GaussianDiffusion.forward`
            (`cond`, for one).

    Raises:
        TypeError: If it is something else.
        ValueError: If a tuple has more than two items, or a dict no `video`.
    """
    if isinstance(batch, Tensor):
        return batch, {}
    if isinstance(batch, Mapping):
        if "video" not in batch:
            raise ValueError(
                f"Trainer: a batch that is a dict must have the key 'video', got "
                f"{sorted(batch)}; rename the clips' key, or override Trainer.unpack_batch"
            )
        return batch["video"], {key: value for key, value in batch.items() if key != "video"}
    if isinstance(batch, (tuple, list)):
        if len(batch) > 2:
            raise ValueError(
                f"Trainer: a batch that is a tuple must be (video,) or (video, cond), got "
                f"{len(batch)} items; use a dict with the keys 'video' and 'cond', or override "
                "Trainer.unpack_batch"
            )
        return batch[0], {"cond": batch[1]} if len(batch) == 2 else {}
    raise TypeError(
        f"Trainer: a batch must be a tensor, a tuple or a dict, got {type(batch).__name__}; "
        "change what the dataset returns, or override Trainer.unpack_batch"
    )


def repeat_to(cond: Any, count: int) -> Any:
    """`count` conditions, a tensor's rows or a list's items, beginning again when they run out."""
    indices = [i % len(cond) for i in range(count)]
    return cond[indices] if isinstance(cond, Tensor) else [cond[i] for i in indices]
