"""How sure a classifier is of each video, and how various the videos are: the inception score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

OUTPUTS = ("logits", "probabilities")
"""What a network of classes may give."""


class InceptionScore:
    """`exp E KL(p(y|x) || p(y))` (Salimans et al. 2016, section 4), of a classifier's outputs.

    They come in batches, of which sums in float64 are kept.

    Args:
        splits: In how many parts videos are taken, by their number. The score is the mean of the
            parts' scores; theirs is 10. A part must be large against the number of classes.
        outputs: What the network gives, `"logits"` or `"probabilities"`.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> score = InceptionScore(splits=1, outputs="probabilities")
        >>> score.add(torch.eye(4), range(4))
        >>> round(score.compute()[0], 6)  # four classes, each told for certain
        4.0
    """

    def __init__(self, splits: int = 10, outputs: str = "logits") -> None:
        if splits < 1:
            raise ValueError(
                f"InceptionScore: splits must be at least 1, got {splits}; 10 is usual"
            )
        if outputs not in OUTPUTS:
            raise ValueError(
                f"InceptionScore: outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}; "
                "say what the network gives"
            )
        self.splits, self.outputs = splits, outputs
        # of each part: probabilities of the classes, negative entropies, count
        self._sums = torch.zeros(splits, 0, dtype=torch.float64)

    def add(self, outputs: Tensor, numbers: Sequence[int]) -> None:
        """Takes in a batch.

        Args:
            outputs: `(b, classes)`, finite.
            numbers: Of the videos, which say what parts they are of.

        Raises:
            ValueError: If they are not such outputs.
        """
        given = outputs.detach().cpu().double()
        self._check(given)
        probabilities = given if self.outputs == "probabilities" else given.softmax(dim=1)
        negative_entropy = torch.special.xlogy(probabilities, probabilities).sum(1, keepdim=True)
        rows = torch.cat((probabilities, negative_entropy, torch.ones_like(negative_entropy)), 1)
        if not self._sums.shape[1]:
            self._sums = rows.new_zeros(self.splits, rows.shape[1])
        part = torch.tensor([number % self.splits for number in numbers], dtype=torch.long)
        self._sums.index_add_(0, part, rows)

    def _check(self, outputs: Tensor) -> None:
        if not bool(outputs.isfinite().all()):
            raise ValueError(
                "InceptionScore: outputs must be finite, got some that are not; look for "
                "not-a-number in the videos, which a diverged model draws"
            )
        off = (outputs.sum(dim=1) - 1).abs().amax() if len(outputs) else outputs.new_zeros(())
        are_probabilities = bool(outputs.ge(0).all()) and off.item() < 1e-3
        if len(outputs) and are_probabilities != (self.outputs == "probabilities"):
            found = "rows of them" if are_probabilities else "other numbers"
            raise ValueError(
                f"InceptionScore: outputs must be {self.outputs}, and probabilities are not "
                f"negative and sum to 1, got {found}; pass outputs="
                f"{'probabilities' if are_probabilities else 'logits'!r}, or a network of classes"
            )

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> InceptionScore:
        """The score of the videos of all processes.

        Args:
            total: Gives the sum of a tensor that every process has.
        """
        joined = InceptionScore(self.splits, self.outputs)
        joined._sums = total(self._sums)
        return joined

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation of the parts' scores, from 1 to the number of classes.

        Raises:
            ValueError: If there are fewer videos than parts.
        """
        if not self._sums.shape[1] or not bool((self._sums[:, -1] > 0).all()):
            raise ValueError(
                f"InceptionScore: each of {self.splits} parts must have videos, got fewer videos; "
                "give more, or a smaller number of splits"
            )
        means = self._sums[:, :-1] / self._sums[:, -1:]
        marginal, negative_entropy = means[:, :-1], means[:, -1]
        scores = (negative_entropy - torch.special.xlogy(marginal, marginal).sum(dim=1)).exp()
        return scores.mean().item(), scores.std(correction=0).item()
