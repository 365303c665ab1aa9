"""Beside the path: captions become the vectors, or states, that a network is conditioned on.

The encoder is BERT (bert-base-cased) unless `set_text_encoder` names another one or hands in a
function. It is loaded from the Hugging Face hub or its cache on first use, once, and never trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from video_diffusion_pytorch.text_loading import find_encoder, load_part
from video_diffusion_pytorch.text_states import as_captions, checked_states, checked_vectors


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
_Encode = Callable[[list[str]], torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
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
    found = find_encoder(name_or_folder)
    MODEL = TOKENIZER = None
    _encoder, _encode, _trust_remote_code = found, None, trust_remote_code


def encoder_name() -> str | None:
    """What tells the encoder from others: its name, its folder, or None for a nameless function."""
    if _encode is None and _encoder is not None and os.path.isdir(_encoder):
        return os.path.abspath(_encoder)
    return _encoder


def embed_captions(
    captions: Sequence[str], *, use_cls: bool = False, device: torch.device | str | None = None
) -> torch.Tensor:
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
    texts = as_captions(captions)
    with torch.no_grad():
        vectors = checked_vectors(_encode(texts), len(texts))
    return vectors.to(device or "cpu")


@torch.no_grad()
def encode_captions(
    captions: Sequence[str], *, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
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
        texts = as_captions(captions)
        states, mask = checked_states(_encode(texts), len(texts))
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


def tokenize(texts: str | Sequence[str], add_special_tokens: bool = True) -> torch.Tensor:
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
    captions = as_captions(texts)
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
    token_ids: torch.Tensor,
    return_cls_repr: bool = False,
    eps: float = 1e-8,
    pad_id: float = 0.0,
) -> torch.Tensor:
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


def _hidden_states(token_ids: torch.Tensor, pad_id: float) -> tuple[torch.Tensor, torch.Tensor]:
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


def _load(part: str, auto_class: str) -> Any:
    if _encode is not None:
        raise ValueError(
            f"the text encoder's {part} is asked for, but the encoder is a function, got "
            f"{_encode!r}; call embed_captions, or set_text_encoder with a model's name"
        )
    assert _encoder is not None
    return load_part(_encoder, part, auto_class, trust_remote_code=_trust_remote_code)
