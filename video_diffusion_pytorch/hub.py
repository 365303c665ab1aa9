"""Shared models: folders on disk or on the Hugging Face Hub, written and loaded.

A folder holds `config.json`, the settings of the model, `model.safetensors`, its tensors, and
`README.md`, a model card. No code of a folder is ever run.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.files import replacing
from video_diffusion_pytorch.version import __version__

LIBRARY = "video-diffusion-pytorch"
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
_MOST_BYTES = 1 << 20  # of a config.json: far more than all settings need
_PATIENCE = 5.0  # seconds for a connection to the Hub

# prefix of the network in the state dict of a diffusion
NETWORK_PREFIX = "denoise_fn."

_CARD = """\
---
library_name: {library}
tags:
- {library}
- video-generation
- diffusion
---

# {name}

A video model, made with {library} {version}.

```python
from video_diffusion_pytorch import {class_name}

model = {class_name}.from_pretrained("{name}")
```
{clips}"""

Model = TypeVar("Model", bound="Shareable")

LOADERS: dict[str, Callable[..., Any]] = {}
"""What loads a model from any kind of file or folder, by the part of `config.json` it is named in:
entered by the modules that know them, for those that don't."""


class Shareable(nn.Module):
    """Base class of `Unet3D` and `GaussianDiffusion`: models that are saved to folders.

    Like `huggingface_hub.ModelHubMixin`, which takes longer to import than the rest of this library
    and guesses the settings of a model from its arguments.

    Attributes:
        config: The settings of the model, in plain numbers, strings and tuples.
    """

    config: dict[str, Any]
    _part: ClassVar[str]
    _classes: ClassVar[dict[str, type[Shareable]]] = {}

    def __init_subclass__(cls, part: str | None = None, **kwargs: Any) -> None:
        """Registers a class under the name of its settings in `config.json`."""
        super().__init_subclass__(**kwargs)
        if part is not None:
            cls._part = part
            cls._classes[part] = cls

    def _to_share(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns the settings by part, and the tensors."""
        return {self._part: self.config}, self.state_dict()

    @classmethod
    def _build(cls: type[Model], config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Model:
        """Builds a model with random weights from settings by part."""
        return cls(**{**config[cls._part], **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Saves the model to a folder for `from_pretrained`.

        Args:
            folder: The folder, made if missing. Its `config.json` and `model.safetensors` are
                replaced, and a `README.md` is added if there is none.

        Raises:
            FileExistsError: If the folder is a file.
            TypeError: If a setting is not a plain value.
            ValueError: If a setting is not finite, the network of a diffusion is not a `Unet3D`, or
                tensors are sharded or on the meta device.

        Example:
            >>> from video_diffusion_pytorch import Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     unet.save_pretrained(folder)
            ...     again = Unet3D.from_pretrained(folder)
            >>> again.config == unet.config
            True
        """
        self._save(Path(folder), name=Path(folder).resolve().name)

    def _save(self, folder: Path, name: str) -> None:
        """Saves the model under a name; each file is replaced as a whole."""
        from safetensors.torch import save_file

        config, tensors = self._to_share()
        about = {"library": LIBRARY, "version": __version__}
        text = json.dumps({**about, **config}, indent=2, allow_nan=False) + "\n"
        whole = {key: _whole(key, value) for key, value in tensors.items()}
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS_FILE) as unfinished:
            save_file(whole, unfinished, {"format": "pt"})
        with replacing(folder / CONFIG_FILE) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        if not (folder / CARD_FILE).exists():
            (folder / CARD_FILE).write_text(self._card(name), encoding="utf-8")

    def _describe_clips(self) -> str:
        """What is known of the training clips, as text of the model card; empty for nothing."""
        return ""

    def _card(self, name: str) -> str:
        return _CARD.format(
            library=LIBRARY,
            version=__version__,
            name=name,
            class_name=self._classes[self._part].__name__,
            clips=self._describe_clips(),
        )

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Model:
        """Loads a model from a folder or a repository of the Hugging Face Hub.

        `Unet3D` also loads the network of a diffusion.

        Args:
            folder_or_repo: A folder of `save_pretrained`, or the name of a repository, such as
                `"user/my-model"`.
            revision: Branch, tag or commit of the repository; None for its main branch.
            cache_dir: Folder of downloads; None for the default of huggingface_hub.
            token: Token for a private repository; None for the one stored by logging in.
            force_download: Whether to download files again.
            local_files_only: Whether to use only files downloaded before.
            **overrides: Keywords of the constructor that override the saved settings.

        Returns:
            The model in evaluation mode, on the CPU, in the data types of the saved tensors.

        Raises:
            FileNotFoundError: If the folder or repository, or a file in it, is missing.
            TypeError: If an override is not a keyword of the constructor.
            ValueError: If a file is damaged or not of such a model, or an override contradicts the
                weights.
        """
        inspect.signature(cls).bind_partial(**overrides)
        options: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        config_file, config, weights_file, tensors = read_shared(folder_or_repo, cls, **options)
        if "diffusion" in config and cls._part == "unet":
            own = (name for name in tensors if name.startswith(NETWORK_PREFIX))
            tensors = {name.removeprefix(NETWORK_PREFIX): tensors[name] for name in own}
        try:
            check_network_size(cls._classes["unet"], config, tensors)
            # not on torch's default device
            with torch.device("cpu"):
                model = cls._build(config, overrides)
        except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
            raise ValueError(
                f"from_pretrained: the settings in {config_file} and the arguments must build a "
                f"{cls.__name__}, got {short(error)}; leave the arguments out, or use version "
                f"{config.get('version', 'unknown')}, which wrote the file (this is {__version__})"
            ) from error
        _take_types(model, tensors)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"from_pretrained: the tensors in {weights_file} must fit the settings and the "
                f"arguments, got {short(error)}; leave out the arguments that change the model"
            ) from error
        return model.eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload the model",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Saves the model to a repository of the Hugging Face Hub, in one commit.

        Args:
            repo_id: Name of the repository, such as `"user/my-model"`; made if missing. Its
                `README.md`, if any, is kept.
            commit_message: Message of the commit.
            private: Whether a new repository is private; None for the account's default.
            token: Token with write access; None for the one stored by logging in.
            branch: Branch to commit to; None for the main one.
            create_pr: Whether to open a pull request instead.

        Returns:
            The URL of the commit.

        Raises:
            ValueError: As `save_pretrained`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            # before the repository is made, as it may fail
            self._save(Path(folder), name=repo_id)
            visibility: dict[str, Any] = {} if private is None else {"private": private}
            repo_id = api.create_repo(repo_id, exist_ok=True, **visibility).repo_id
            (Path(folder) / CARD_FILE).write_text(self._card(repo_id), encoding="utf-8")
            has_card = api.file_exists(repo_id, CARD_FILE, revision=branch)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                ignore_patterns=[CARD_FILE] if has_card else None,
            )
        return commit.commit_url


def is_reachable() -> bool:
    """Whether the Hugging Face Hub can be reached, as far as can be known in a few seconds.

    Without a network its client retries each request for half a minute.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        # which may reach what this machine can't
        return True
    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname or "", port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def read_shared(
    folder_or_repo: str | os.PathLike[str], kind: type[Shareable], **options: Any
) -> tuple[Path, dict[str, Any], Path, dict[str, Tensor]]:
    """Reads the files of a shared model, which are downloaded if necessary.

    Args:
        folder_or_repo: As in `Shareable.from_pretrained`.
        kind: The class of the model.
        **options: Keywords of `huggingface_hub.hf_hub_download`, for a repository.

    Returns:
        The file of the settings, the settings by part, the file of the tensors, and these.

    Raises:
        FileNotFoundError: If the folder or repository, or a file in it, is missing.
        ValueError: If a file is damaged or not of such a model.
    """
    config_file = _find_file(folder_or_repo, CONFIG_FILE, options)
    config = _read_config(config_file, kind)
    weights_file = _find_file(folder_or_repo, WEIGHTS_FILE, options)
    return config_file, config, weights_file, _read_tensors(weights_file)


def _find_file(
    folder_or_repo: str | os.PathLike[str], name: str, options: Mapping[str, Any]
) -> Path:
    """Returns a file of a folder, or of a repository, which is downloaded if necessary."""
    if Path(folder_or_repo).is_dir():
        file = Path(folder_or_repo) / name
        # a pipe or a device might never end
        if not file.is_file():
            raise FileNotFoundError(
                f"from_pretrained: {folder_or_repo} must hold {CONFIG_FILE} and {WEIGHTS_FILE}, "
                f"got a folder without a regular file {name}; write it with save_pretrained, or "
                "load a training file with load_diffusion"
            )
        return file
    from huggingface_hub import errors, hf_hub_download

    repo = os.fspath(folder_or_repo)
    is_local = options.get("local_files_only", False) or not is_reachable()
    missing = (
        errors.HFValidationError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    )
    try:
        return Path(hf_hub_download(repo, name, **{**options, "local_files_only": is_local}))
    except missing as error:
        raise FileNotFoundError(
            f"from_pretrained: {repo} must be a folder, or a repository of the Hugging Face Hub "
            f"with {name}, got {type(error).__name__} ({short(error)}); check name, network and "
            "token, or load a training file with load_diffusion"
        ) from error


def read_config(folder_or_repo: str | os.PathLike[str], cls: type[Shareable]) -> dict[str, Any]:
    """Reads the settings of a shared model, by part, without its tensors.

    Args:
        folder_or_repo: As for `from_pretrained`.
        cls: The class whose settings are required.

    Raises:
        FileNotFoundError: If the folder or repository, or its `config.json`, is missing.
        ValueError: If the file is damaged or not of such a model.
    """
    return _read_config(_find_file(folder_or_repo, CONFIG_FILE, {}), cls)


def _read_config(file: Path, cls: type[Shareable]) -> dict[str, Any]:
    """Reads the settings of a model of a class from a `config.json`."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"from_pretrained: {file} must be the JSON file of a model, got a damaged or another "
            f"file ({short(error)}); save or download the model again"
        ) from error
    parts = {"unet", cls._part}
    is_model = isinstance(config, dict) and all(isinstance(config.get(p), dict) for p in parts)
    if not is_model:
        raise ValueError(
            f"from_pretrained: {file} must hold the settings of a {cls.__name__} under "
            f"{' and '.join(sorted(parts))}, got {shown(config)}; load a network without "
            "diffusion with Unet3D.from_pretrained"
        )
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a `model.safetensors` to the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"from_pretrained: {file} must be a safetensors file, got a damaged or another file "
            f"({short(error)}); save or download the model again"
        ) from error


def _whole(name: str, value: Tensor) -> Tensor:
    """Returns a tensor as safetensors takes it: on the CPU, contiguous, without shared memory."""
    if value.is_meta or hasattr(value, "full_tensor"):
        raise ValueError(
            f"save_pretrained: {name} must be a whole tensor with data, got "
            f"{'a meta tensor' if value.is_meta else 'a shard'}; save a checkpoint of the "
            "training, load it with load_diffusion, and save that"
        )
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def short(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    return " ".join(str(error).split())[:300]


def check_network_size(
    network: type[nn.Module], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Checks that a model is not much larger than its weights, before it is built.

    Args:
        network: The class of the network.
        config: Settings by part: `unet`, and for a diffusion `diffusion`.
        tensors: The weights.

    Raises:
        ValueError: If the network has more parameters, or the diffusion more time steps, than the
            weights have bytes.
    """
    storages = (tensor.untyped_storage() for tensor in tensors.values())
    # not the numbers of elements: an expanded tensor repeats one
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    most, count = held + 2**20, 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        # during construction: a billion blocks would take hours even on the meta device
        count += parameter.numel() if parameter is not None and parameter.is_meta else 0
        if count > most:
            raise ValueError(f"a network of {count} parameters or more for {held} bytes of weights")

    steps = (config.get("diffusion") or {}).get("timesteps", 0)
    if steps > most:
        raise ValueError(f"a diffusion of {steps} steps for {held} bytes of weights")
    hook = register_module_parameter_registration_hook(add)
    try:
        with torch.device("meta"):
            network(**config["unet"])
    finally:
        hook.remove()


def _take_types(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Converts the model to the data types of tensors to load, such as bfloat16."""
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        if name in tensors and tensors[name].is_floating_point() and value.is_floating_point():
            value.data = value.data.to(tensors[name].dtype)
