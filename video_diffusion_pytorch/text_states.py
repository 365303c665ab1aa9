"""Beside the path: what encoders take and give: lists of captions, vectors, sequences of states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def as_captions(texts: str | Sequence[str]) -> list[str]:
    """One caption, or several, as a list.

    Raises:
        TypeError: If it is neither a string nor a list or tuple of strings.
        ValueError: If there are none.
    """
    captions = [texts] if isinstance(texts, str) else texts
    if not isinstance(captions, (list, tuple)):
        raise TypeError(
            f"texts must be a string or a list of strings, got {type(captions).__name__}; pass "
            "list(texts)"
        )
    strangers = sorted({type(text).__name__ for text in captions if not isinstance(text, str)})
    if strangers:
        raise TypeError(
            f"each of texts must be a string, got {', '.join(strangers)}; convert them with str()"
        )
    if not captions:
        raise ValueError("texts must hold at least one caption, got none; pass '' for no text")
    # half an emoji, which JSON can hold, is no text to a tokenizer
    return [text.encode(errors="replace").decode() for text in captions]


def pad_states(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences of several lengths as one tensor.

    Args:
        states: Of each caption, `(tokens, d)`.

    Returns:
        `(b, n, d)`, where `n` is the greatest length, at least 1, and shorter ones end in 0; and
        the boolean mask `(b, n)`, true where there is a token.

    Example:
        >>> states, mask = pad_states([torch.ones(1, 2), torch.ones(3, 2)])
        >>> mask
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    padded = pad_sequence(list(states), batch_first=True)
    if not padded.shape[1]:
        padded = F.pad(padded, (0, 0, 0, 1))
    lengths = torch.tensor([len(one) for one in states], device=padded.device)
    places = torch.arange(padded.shape[1], device=padded.device)
    return padded, places < lengths[:, None]


def checked_vectors(result: Any, count: int) -> Tensor:
    """The vectors that a function of a user's own gives for `count` captions.

    Raises:
        TypeError: If it gives no tensor.
        ValueError: If it gives another shape, such as sequences of states.
    """
    if isinstance(result, (tuple, list)) and result and all(map(torch.is_tensor, result)):
        # states and their mask
        result = result[0]
    if not torch.is_tensor(result):
        raise TypeError(
            f"the text encoder must return a tensor of shape ({count}, d), got "
            f"{type(result).__name__}; convert it with torch.as_tensor"
        )
    if result.ndim != 2 or len(result) != count or not result.is_floating_point():
        hint = "return one vector per caption"
        if result.ndim == 3:
            hint += ", or build the network so that it takes sequences, with num_text_tokens"
        raise ValueError(
            f"the text encoder must return floating-point vectors of shape ({count}, d), got "
            f"{result.dtype} of shape {tuple(result.shape)}; {hint}"
        )
    return result


def checked_states(result: Any, count: int) -> tuple[Tensor, Tensor]:
    """The states that a function of a user's own gives for `count` captions, and their mask.

    Raises:
        TypeError: If it gives neither a tensor nor a tuple of two.
        ValueError: If they have other shapes, such as that of vectors.
    """
    states, mask = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not torch.is_tensor(states) or not (mask is None or torch.is_tensor(mask)):
        kinds = ", ".join(type(one).__name__ for one in (states, *[mask] * (mask is not None)))
        raise TypeError(
            f"the text encoder must return states of shape ({count}, n, d), or a tuple of them and "
            f"a mask ({count}, n), got {kinds}; convert them with torch.as_tensor"
        )
    if states.ndim != 3 or len(states) != count or not states.is_floating_point():
        hint = "return the state of each token"
        if states.ndim == 2:
            hint += ", or build the network so that it takes vectors, without num_text_tokens"
        raise ValueError(
            f"the text encoder must return floating-point states of shape ({count}, n, d), got "
            f"{states.dtype} of shape {tuple(states.shape)}; {hint}"
        )
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if mask.dtype != torch.bool or mask.shape != states.shape[:2]:
        raise ValueError(
            f"the text encoder's mask must be boolean of shape {tuple(states.shape[:2])}, true "
            f"where there is a token, got {mask.dtype} of shape {tuple(mask.shape)}; compare token "
            "numbers with that of padding"
        )
    if not states.shape[1]:
        # captions without tokens, of which a network still needs a place
        states, mask = F.pad(states, (0, 0, 0, 1)), F.pad(mask, (0, 1))
    return states, mask
