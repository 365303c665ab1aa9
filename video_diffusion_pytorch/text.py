"""Text encoders: captions to the vectors or states that a network is conditioned on.

The default encoder is BERT (bert-base-cased); `set_text_encoder` sets another one or a function. It
is loaded on first use, from the Hugging Face Hub or its cache, and never trained.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.hub import is_reachable


def exists(val: Any) -> bool:
    """Whether `val` is not None; kept for scripts that import it from here."""
    return val is not None


MODEL: Any = None
"""The loaded encoder, None before first use."""

TOKENIZER: Any = None
"""The loaded tokenizer, None before first use."""

BERT_MODEL_DIM = 768
"""Width of the vectors and states of the default encoder."""

DEFAULT_ENCODER = "bert-base-cased"
"""Name of the default encoder."""

_encoder: str | None = DEFAULT_ENCODER
_Encode = Callable[[list[str]], Tensor | tuple[Tensor, Tensor]]
_encode: _Encode | None = None
_trust_remote_code = False
# Whether the user has set an encoder, which then holds for every model
_is_chosen = False
_FUNCTION = "function:"


def set_text_encoder(
    name_or_folder: str | os.PathLike[str] | _Encode = DEFAULT_ENCODER,
    *,
    name: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Sets the text encoder.

    A network conditioned on another encoder's vectors or states needs their width (`hidden_size` in
    the encoder's configuration) as its `cond_dim`.

    Args:
        name_or_folder: Name of a model on the Hugging Face Hub, or a folder written by
            `save_pretrained`. It must be like BERT: one vector per token, the first for the whole
            text, and 0 as the padding token. Or a function from a list of `b` captions to vectors
            `(b, d)`; or, for a network that takes text states, to states `(b, n, d)`, or a tuple of
            these and a boolean mask `(b, n)`, True at tokens.
        name: Name of a function, which identifies its vectors in a cache; None for a function whose
            vectors must not be cached.
        trust_remote_code: Whether to run Python code that comes with the model; if False, a model
            that needs it is refused.

    Raises:
        FileNotFoundError: The argument is a path, and there is no such folder.
        ValueError: A name is given without a function.

    Example:
        >>> lengths = lambda captions: torch.tensor([[float(len(c))] for c in captions])
        >>> set_text_encoder(lengths, name="lengths")
        >>> embed_captions(["a whale"])
        tensor([[7.]])
        >>> set_text_encoder()
    """
    global MODEL, TOKENIZER, _encoder, _encode, _trust_remote_code, _is_chosen
    if callable(name_or_folder):
        MODEL = TOKENIZER = None
        _encoder, _encode, _is_chosen = name, name_or_folder, True
        return
    if name is not None:
        raise ValueError(
            f"name must be None unless the text encoder is a function, got {name!r} with "
            f"{name_or_folder!r}; leave it out"
        )
    found = _find_encoder(name_or_folder)
    MODEL = TOKENIZER = None
    _encoder, _encode, _trust_remote_code = found, None, trust_remote_code
    _is_chosen = found != DEFAULT_ENCODER


def encoder_name() -> str | None:
    """Name or absolute folder of the encoder; None for a function without a name."""
    if _encode is None and _encoder is not None and os.path.isdir(_encoder):
        return os.path.abspath(_encoder)
    return _encoder


def encoder_to_save() -> str:
    """Description of the encoder for `use_encoder`: name, absolute folder, or "function:NAME"."""
    return encoder_name() or "" if _encode is None else f"{_FUNCTION}{_encoder or ''}"


def use_encoder(saved: str | None) -> None:
    """Sets the encoder that a model was trained with, unless `set_text_encoder` has set one.

    Args:
        saved: As from `encoder_to_save`; None if unknown, which changes nothing.

    Raises:
        FileNotFoundError: It was in a folder that is missing.
        ValueError: It was a function.
    """
    global _is_chosen
    if saved is None or _is_chosen or saved == encoder_name():
        return
    if saved.startswith(_FUNCTION):
        name = saved.removeprefix(_FUNCTION)
        raise ValueError(
            "the captions must be encoded as in training, by a function"
            f"{f' named {name!r}' if name else ''}, got none; pass it to text.set_text_encoder"
        )
    set_text_encoder(saved)
    # the next model may have another
    _is_chosen = False


def encoder_width() -> int | None:
    """Width of the encoder's vectors and states, by its configuration; None for a function.

    Raises:
        OSError: The configuration cannot be loaded.
    """
    return _load("configuration", "AutoConfig").hidden_size if _encode is None else None


def embed_captions(
    captions: Sequence[str], *, use_cls: bool = False, device: torch.device | str | None = None
) -> Tensor:
    """Encodes each caption as one vector.

    Args:
        captions: A list or tuple of `b` captions.
        use_cls: Whether to return the state of [CLS] instead of the mean of the other tokens'
            states; without effect on a function.
        device: Device of the encoder and the result; None for the CPU. A function chooses its own.

    Returns:
        `(b, d)`, floating-point.

    Raises:
        OSError: The encoder cannot be loaded.
        TypeError: `captions` is not a list or tuple of strings.
        ValueError: There are no captions, or a function returns something else.
    """
    if _encode is None:
        return bert_embed(tokenize(captions).to(device or "cpu"), return_cls_repr=use_cls)
    with torch.no_grad():
        vectors, _ = _call_function(captions, ndim=2)
    return vectors.to(device or "cpu")


@torch.no_grad()
def encode_captions(
    captions: Sequence[str], *, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Encodes each caption as a sequence of states.

    Args:
        captions: A list or tuple of `b` captions.
        device: As in `embed_captions`.

    Returns:
        The encoder's last hidden states, `(b, n, d)` float32, including BERT's [CLS] and [SEP] and
        0 at padding; and the boolean mask `(b, n)`, True at tokens.

    Raises:
        OSError: The encoder cannot be loaded.
        TypeError: `captions` is not a list or tuple of strings.
        ValueError: There are no captions, or a function returns something else.

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
        states, mask = _call_function(captions, ndim=3)
    states, mask = states.to(device or "cpu").float(), mask.to(device or "cpu")
    return states.masked_fill(~mask[..., None], 0), mask


def _call_function(captions: Sequence[str], ndim: int) -> tuple[Tensor, Tensor]:
    """Calls the user's function for vectors (2 axes) or states (3), and returns them and a mask."""
    assert _encode is not None
    texts = _as_captions(captions)
    result: Any = _encode(texts)
    values, mask = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    count = len(texts)
    is_float = torch.is_tensor(values) and values.is_floating_point()
    if not is_float or values.ndim != ndim or len(values) != count:
        states = f"states of shape ({count}, n, d), or a tuple of them and a mask ({count}, n)"
        raise ValueError(
            "the text encoder must return floating-point "
            f"{states if ndim == 3 else f'vectors of shape ({count}, d)'}, got {_kind(values)}; a "
            "network takes states if it is built with num_text_tokens, otherwise vectors"
        )
    if mask is None:
        mask = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
    if not torch.is_tensor(mask) or mask.dtype != torch.bool or mask.shape != values.shape[:-1]:
        raise ValueError(
            f"the text encoder's mask must be boolean, of shape {tuple(values.shape[:-1])}, True "
            f"at tokens, got {_kind(mask)}; compare token numbers with that of padding"
        )
    if ndim == 3 and not values.shape[1]:
        # a network needs at least one place
        values, mask = F.pad(values, (0, 0, 0, 1)), F.pad(mask, (0, 1))
    return values, mask


def _kind(value: Any) -> str:
    is_tensor = torch.is_tensor(value)
    return f"{value.dtype} of shape {tuple(value.shape)}" if is_tensor else type(value).__name__


def get_tokenizer() -> Any:
    """Returns the tokenizer, loaded on the first call.

    Returns:
        A `transformers` tokenizer; its `model_max_length` is the encoder's longest input.

    Raises:
        OSError: It cannot be loaded.
        ValueError: Its padding token is not 0, or the encoder is a function.
    """
    global TOKENIZER
    if TOKENIZER is None:
        tokenizer = _load("tokenizer", "AutoTokenizer")
        config = _load("configuration", "AutoConfig")
        if tokenizer.pad_token_id != 0:
            raise ValueError(
                f"the text encoder {_encoder!r} must use 0 as its padding token, got "
                f"{tokenizer.pad_token_id}; choose one like BERT with set_text_encoder"
            )
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None:
            tokenizer.model_max_length = min(limit, tokenizer.model_max_length)
        TOKENIZER = tokenizer
    return TOKENIZER


def get_bert() -> Any:
    """Returns the encoder, loaded on the first call.

    Returns:
        A frozen `transformers` model in float32 and evaluation mode, on the device where it was
        last used, at first the CPU.

    Raises:
        OSError: It cannot be loaded.
        ValueError: The encoder is a function.
    """
    global MODEL
    if MODEL is None:
        # parameters made in inference mode cannot be moved to another device outside it
        with torch.inference_mode(False), torch.device("cpu"):
            model = _load("model", "AutoModel")
            MODEL = model.float().eval().requires_grad_(False)
    return MODEL


def tokenize(texts: str | Sequence[str], add_special_tokens: bool = True) -> Tensor:
    """Converts captions to token numbers.

    Args:
        texts: One caption, or a list or tuple of `b` captions. They are truncated to the encoder's
            longest input (512 tokens for the default).
        add_special_tokens: Whether to add the encoder's start and end tokens.

    Returns:
        `(b, n)` int64, padded with 0 to the longest caption's number of tokens.

    Raises:
        OSError: The tokenizer cannot be loaded.
        TypeError: `texts` is neither a string nor a list or tuple of strings.
        ValueError: `texts` is empty, or the encoder is a function.
    """
    captions = _as_captions(texts)
    tokenizer = get_tokenizer()
    encoded = tokenizer(
        captions,
        add_special_tokens=add_special_tokens,
        padding=True,
        truncation=True,
        max_length=tokenizer.model_max_length,
    )
    return torch.tensor(encoded["input_ids"], dtype=torch.long, device="cpu")


@torch.no_grad()
def bert_embed(
    token_ids: Tensor,
    return_cls_repr: bool = False,
    eps: float = 1e-8,
    pad_id: float = 0.0,
) -> Tensor:
    """Encodes token numbers as one vector per caption.

    Args:
        token_ids: `(b, n)` int64 or int32, from `tokenize`. The encoder runs on their device.
        return_cls_repr: Whether to return the last hidden state of the first token, [CLS], instead
            of the mean over the other tokens without padding, which is 0 if there are none.
        eps: Added to the number of tokens by which the mean is divided.
        pad_id: The padding token.

    Returns:
        `(b, d)` float32 on the device of `token_ids`; `d` is 768 for the default encoder.

    Raises:
        OSError: The encoder cannot be loaded.
        ValueError: There are more tokens than the encoder takes, or it is a function.
    """
    hidden, mask = _hidden_states(token_ids, pad_id)
    if return_cls_repr:
        return hidden[:, 0]
    weights = mask[:, 1:, None].float()
    return (hidden[:, 1:] * weights).sum(dim=1) / (weights.sum(dim=1) + eps)


def _hidden_states(token_ids: Tensor, pad_id: float) -> tuple[Tensor, Tensor]:
    """Returns the encoder's last hidden states `(b, n, d)` and the mask of tokens `(b, n)`."""
    model = get_bert()
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and token_ids.shape[1] > limit:
        raise ValueError(
            f"token_ids must have at most {limit} tokens per caption for {_encoder!r}, got "
            f"{token_ids.shape[1]}; truncate them, as tokenize does"
        )
    model.to(token_ids.device)
    mask = token_ids != pad_id
    hidden = model(input_ids=token_ids, attention_mask=mask.long()).last_hidden_state.float()
    return hidden, mask


def _find_encoder(name_or_folder: str | os.PathLike[str]) -> str:
    """Returns the name of a model on the Hub as it is, or a folder without `~`."""
    found = os.fspath(name_or_folder)
    looks_like_path = os.path.isabs(found) or found.startswith((".", "~"))
    looks_like_path = looks_like_path or found.count("/") > 1 or "\\" in found
    if not looks_like_path and isinstance(name_or_folder, str):
        return found
    found = os.path.expanduser(found)
    if not os.path.isdir(found):
        raise FileNotFoundError(
            f"expected a folder with a text encoder at {found}, found none; give set_text_encoder "
            "(on the command line --text_encoder) its path, or its name on the Hugging Face Hub"
        )
    return found


def _load(part: str, auto_class: str) -> Any:
    """Loads the encoder's tokenizer, configuration or model by a class of `transformers`."""
    if _encode is not None:
        raise ValueError(
            f"the text encoder must be one with a {part}, got a function; call embed_captions, or "
            "set_text_encoder with a model's name"
        )
    import transformers

    encoder: Any = _encoder
    try:
        with _quiet(transformers.utils.logging):
            return getattr(transformers, auto_class).from_pretrained(
                encoder,
                # by default transformers asks on the terminal
                trust_remote_code=_trust_remote_code,
                # without a network the Hub's client would retry for a minute
                local_files_only=not (os.path.isdir(encoder) or is_reachable()),
            )
    # the kinds of errors depend on the versions of the Hub's client and its network library
    except Exception as error:
        if isinstance(error, ValueError) and "trust_remote_code=True" in str(error):
            trust = f"text.set_text_encoder({encoder!r}, trust_remote_code=True)"
            raise OSError(
                f"the text encoder {encoder!r} must have no Python code of its own, got code for "
                f"its {part}; choose another encoder, or if you trust that code call {trust}, for "
                'a command by: python -c "from video_diffusion_pytorch import cli, text; '
                f'{trust}; cli.main()" train FOLDER --text_encoder null'
            ) from error
        reason = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(".")
        raise OSError(
            f"expected the text encoder's {part} in the folder {encoder!r}, or under that name on "
            f"the Hugging Face Hub or in its cache, got {type(error).__name__}: {reason}; go "
            "online once to fill the cache, or give set_text_encoder (on the command line "
            "--text_encoder) a folder written by save_pretrained"
        ) from error


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silences progress bars and load reports of `transformers`."""
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
    """Returns one caption, or several, as a list."""
    captions = [texts] if isinstance(texts, str) else texts
    is_list = isinstance(captions, (list, tuple))
    if not is_list or not all(isinstance(text, str) for text in captions):
        raise TypeError(f"texts must be a string or a list of strings, got {shown(texts)}")
    if not captions:
        raise ValueError("texts must hold at least one caption, got none; pass '' for no text")
    # tokenizers refuse half an emoji, which JSON can hold
    return [text.encode(errors="replace").decode() for text in captions]


def pad_states(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads sequences of states to one length.

    Args:
        states: The states of each caption, `(tokens, d)`.

    Returns:
        `(b, n, d)`, padded with 0 to the greatest length, at least 1; and the boolean mask
        `(b, n)`, True at tokens.

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
