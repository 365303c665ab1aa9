"""Text encoders: captions to the vectors or states that a network is conditioned on.

The encoder is BERT (bert-base-cased) unless `set_text_encoder` names another one or hands in a
function. It is loaded from the Hugging Face hub or its cache on first use, once, and never trained.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def exists(val: Any) -> bool:
    """Whether `val` is something other than None; kept for scripts that import it from here."""
    return val is not None


MODEL: Any = None
"""The loaded encoder, None before first use."""

TOKENIZER: Any = None
"""The loaded tokenizer, None before first use."""

BERT_MODEL_DIM = 768
"""Length of the vectors of the default encoder."""

_DEFAULT_ENCODER = "bert-base-cased"
_encoder: str | None = _DEFAULT_ENCODER
_Encode = Callable[[list[str]], Tensor | tuple[Tensor, Tensor]]
_encode: _Encode | None = None
_trust_remote_code = False


def set_text_encoder(
    name_or_folder: str | os.PathLike[str] | _Encode = _DEFAULT_ENCODER,
    *,
    name: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Choose the encoder that captions go through from now on.

    The encoder loaded before, if any, is let go. A network conditioned on another encoder's vectors
    or states needs their length (`hidden_size` in the encoder's configuration) as its `cond_dim`.

    Args:
        name_or_folder: A model's name on the Hugging Face hub, or a folder that holds one (as
            written by `save_pretrained`). It must be of BERT's kind: one vector per token, the
            first for the whole text, and 0 as the padding token. Or a function of your own from
            a list of `b` captions to vectors `(b, d)`; or, for a network that takes sequences of
            states, to states `(b, n, d)`, or a tuple of them and a boolean mask `(b, n)`, true
            where there is a token.
        name: What tells the function from others where vectors are kept; None for a function
            whose vectors must not be kept.
        trust_remote_code: Whether to run Python code that comes with the model. Without, a model
            that needs it is refused; it is never asked for on the terminal.

    Raises:
        FileNotFoundError: The argument is a path, and there is no such folder.
        ValueError: A name is given, but no function.

    Example:
        >>> lengths = lambda captions: torch.tensor([[float(len(c))] for c in captions])
        >>> set_text_encoder(lengths, name="lengths")
        >>> embed_captions(["a whale"])
        tensor([[7.]])
        >>> set_text_encoder()
    """
    global MODEL, TOKENIZER, _encoder, _encode, _trust_remote_code
    if callable(name_or_folder):
        MODEL = TOKENIZER = None
        _encoder, _encode = name, name_or_folder
        return
    if name is not None:
        raise ValueError(
            f"name must be left out unless the text encoder is a function, got {name!r} beside "
            f"{name_or_folder!r}; leave it out, or pass the function"
        )
    found = _find_encoder(name_or_folder)
    MODEL = TOKENIZER = None
    _encoder, _encode, _trust_remote_code = found, None, trust_remote_code


def encoder_name() -> str | None:
    """What tells the encoder from others: its name, its folder, or None for a nameless function."""
    if _encode is None and _encoder is not None and os.path.isdir(_encoder):
        return os.path.abspath(_encoder)
    return _encoder


def embed_captions(
    captions: Sequence[str], *, use_cls: bool = False, device: torch.device | str | None = None
) -> Tensor:
    """Turn captions into one vector each, by the encoder that is set.

    Args:
        captions: A list or tuple of `b` captions.
        use_cls: Take the state of [CLS] instead of the mean state; a function of your own is
            not told.
        device: Where the encoder runs and the result lies; None for the CPU. A function of your
            own runs where it likes.

    Returns:
        `(b, d)`, floating-point.

    Raises:
        OSError: The encoder cannot be loaded.
        TypeError: Something is no string, or a function of your own returns no tensor.
        ValueError: There are no captions, or a function of your own returns another shape.
    """
    if _encode is None:
        return bert_embed(tokenize(captions).to(device or "cpu"), return_cls_repr=use_cls)
    texts = _as_captions(captions)
    with torch.no_grad():
        vectors = _checked_vectors(_encode(texts), len(texts))
    return vectors.to(device or "cpu")


@torch.no_grad()
def encode_captions(
    captions: Sequence[str], *, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Turn captions into sequences of states, by the encoder that is set.

    Args:
        captions: A list or tuple of `b` captions.
        device: As in `embed_captions`.

    Returns:
        The encoder's last hidden states, `(b, n, d)` float32: one for each token, BERT's [CLS] and
        [SEP] among them, 0 at padding; and the boolean mask `(b, n)`, true where there is a token.

    Raises:
        OSError: The encoder cannot be loaded.
        TypeError: Something is no string, or a function of your own returns no tensors.
        ValueError: There are no captions, or a function of your own returns other shapes.

    Example:
        >>> letters = lambda texts: torch.tensor([[[float(ord(x))] for x in c] for c in texts])
        >>> set_text_encoder(letters)
        >>> states, mask = encode_captions(["cat", "dog"])
        >>> states.shape, mask.all()
        (torch.Size([2, 3, 1]), tensor(True))
        >>> set_text_encoder()
    """
    if _encode is None:
        states, mask = _hidden_states(tokenize(captions).to(device or "cpu"), pad_id=0)
    else:
        texts = _as_captions(captions)
        states, mask = _checked_states(_encode(texts), len(texts))
    states, mask = states.to(device or "cpu").float(), mask.to(device or "cpu")
    return states.masked_fill(~mask[..., None], 0), mask


def get_tokenizer() -> Any:
    """Give the tokenizer, loaded on the first call.

    Returns:
        A `transformers` tokenizer; its `model_max_length` is what the encoder can take.

    Raises:
        OSError: It cannot be loaded; the message says what was looked for and where.
        ValueError: Its padding token is not 0.
    """
    global TOKENIZER
    if TOKENIZER is None:
        tokenizer = _load("tokenizer", "AutoTokenizer")
        config = _load("configuration", "AutoConfig")
        if tokenizer.pad_token_id != 0:
            raise ValueError(
                f"the text encoder {_encoder!r} must use 0 as its padding token, got "
                f"{tokenizer.pad_token_id}; choose one of BERT's kind with set_text_encoder"
            )
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None:
            tokenizer.model_max_length = min(limit, tokenizer.model_max_length)
        TOKENIZER = tokenizer
    return TOKENIZER


def get_bert() -> Any:
    """Give the encoder, loaded on the first call.

    Returns:
        A `transformers` model in float32 and evaluation mode, none of whose parameters asks for
        gradients. It is on the device where it was last used, at first the CPU.

    Raises:
        OSError: It cannot be loaded; the message says what was looked for and where.
    """
    global MODEL
    if MODEL is None:
        # Parameters made in inference mode could not be moved to another device outside it
        with torch.inference_mode(False):
            model = _load("model", "AutoModel")
            MODEL = model.float().eval().requires_grad_(False)
    return MODEL


def tokenize(texts: str | Sequence[str], add_special_tokens: bool = True) -> Tensor:
    """Turn captions into token numbers.

    Args:
        texts: One caption, or a list or tuple of `b` captions. What exceeds the encoder's longest
            input (512 tokens for the default) is cut off at the end.
        add_special_tokens: Put the encoder's start token before each caption and its end token
            after it.

    Returns:
        `(b, n)` int64, where `n` is the longest caption's number of tokens; shorter ones end in 0.

    Raises:
        OSError: The tokenizer cannot be loaded.
        TypeError: `texts` is neither a string nor a list or tuple of strings.
        ValueError: `texts` is empty, or the encoder is a function of your own.
    """
    captions = _as_captions(texts)
    tokenizer = get_tokenizer()
    encoded = tokenizer(
        captions,
        add_special_tokens=add_special_tokens,
        padding=True,
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    return encoded["input_ids"].long()


@torch.no_grad()
def bert_embed(
    token_ids: Tensor,
    return_cls_repr: bool = False,
    eps: float = 1e-8,
    pad_id: float = 0.0,
) -> Tensor:
    """Turn token numbers into one vector per caption.

    Args:
        token_ids: `(b, n)` int64 or int32, from `tokenize`. The encoder runs on their device.
        return_cls_repr: True gives the last hidden state of the first token, [CLS]. False gives the
            mean of those of all other tokens but padding; it is 0 where there are none.
        eps: Added to the number of tokens that the mean divides by.
        pad_id: The token to leave out as padding.

    Returns:
        `(b, d)` float32 on the device of `token_ids`; `d` is 768 for the default encoder.

    Raises:
        OSError: The encoder cannot be loaded.
        ValueError: `token_ids` has another shape or type, or more tokens than the encoder takes;
            or the encoder is a function of your own.
    """
    hidden, mask = _hidden_states(token_ids, pad_id)
    if return_cls_repr:
        return hidden[:, 0]
    weights = mask[:, 1:, None].float()
    return (hidden[:, 1:] * weights).sum(dim=1) / (weights.sum(dim=1) + eps)


def _hidden_states(token_ids: Tensor, pad_id: float) -> tuple[Tensor, Tensor]:
    """The encoder's last hidden states `(b, n, d)`, and where there is a token `(b, n)`."""
    is_integer = token_ids.dtype in (torch.int64, torch.int32)
    if token_ids.ndim != 2 or not token_ids.numel() or not is_integer:
        raise ValueError(
            "token_ids must be int64 or int32 of shape (captions, tokens), at least one of each, "
            f"got {token_ids.dtype} of shape {tuple(token_ids.shape)}; pass what tokenize returns"
        )
    model = get_bert()
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and token_ids.shape[1] > limit:
        raise ValueError(
            f"token_ids must have at most {limit} tokens per caption for {_encoder!r}, got "
            f"{token_ids.shape[1]}; cut them, as tokenize does"
        )
    model.to(token_ids.device)
    mask = token_ids != pad_id
    hidden = model(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state.float()
    return hidden, mask


def _find_encoder(name_or_folder: str | os.PathLike[str]) -> str:
    """A text encoder's name on the Hugging Face Hub as it is, or its folder without `~`."""
    found = os.fspath(name_or_folder)
    is_path = (
        isinstance(name_or_folder, os.PathLike)
        or found.startswith((".", "~"))
        or os.path.isabs(found)
        or found.count("/") > 1
        or "\\" in found
    )
    if not is_path:
        return found
    found = os.path.expanduser(found)
    if not os.path.isdir(found):
        raise FileNotFoundError(
            f"expected a folder with a text encoder at {found}, found none; check the path "
            f"(working folder: {Path.cwd()}), or give the model's name on the Hugging Face hub"
        )
    return found


def _load(part: str, auto_class: str) -> Any:
    """Loads the encoder's tokenizer, configuration or model by a class of `transformers`."""
    if _encode is not None:
        raise ValueError(
            f"the text encoder's {part} is asked for, but the encoder is a function, got "
            f"{_encode!r}; call embed_captions, or set_text_encoder with a model's name"
        )
    import huggingface_hub.constants
    import transformers

    encoder: Any = _encoder
    try:
        with _quiet(transformers.utils.logging):
            # left out, it would be asked for on the terminal
            return getattr(transformers, auto_class).from_pretrained(
                encoder, trust_remote_code=_trust_remote_code
            )
    # Which error it is differs between versions of the hub's client, and with its network library
    except Exception as error:
        if os.path.isdir(encoder):
            where = f"in the folder {encoder}"
        else:
            cache = huggingface_hub.constants.HF_HUB_CACHE
            where = f"as {encoder!r} on the Hugging Face hub and in its cache {cache}"
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        if isinstance(error, ValueError) and "trust_remote_code=True" in str(error):
            raise OSError(
                f"the text encoder's {part} was expected {where} without code of its own, got an "
                "encoder whose Python code would have to be run; choose another encoder, or read "
                "that code, and if you trust it call "
                f"video_diffusion_pytorch.text.set_text_encoder({encoder!r}, "
                'trust_remote_code=True), for a command by: python -c "from '
                "video_diffusion_pytorch import cli, text; "
                f'text.set_text_encoder({encoder!r}, trust_remote_code=True); cli.main()" train '
                "FOLDER --text_encoder null"
            ) from error
        raise OSError(
            f"the text encoder's {part} was expected {where}, but loading it gave "
            f"{type(error).__name__}: {reason}; go online once to fill the cache, or call "
            "video_diffusion_pytorch.text.set_text_encoder(folder) with a folder written by "
            "save_pretrained"
        ) from error


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silence progress bars and load reports, which would come between a training run's lines."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _as_captions(texts: str | Sequence[str]) -> list[str]:
    """One caption, or several, as a list."""
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


def _checked_vectors(result: Any, count: int) -> Tensor:
    """The vectors that a function of a user's own gives for `count` captions."""
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


def _checked_states(result: Any, count: int) -> tuple[Tensor, Tensor]:
    """The states that a function of a user's own gives for `count` captions, and their mask."""
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
