"""Shared models: folders, on disk or on the Hugging Face Hub, written and loaded again.

The folder holds `config.json`, the settings the model was built with, `model.safetensors`, its
tensors, and `README.md`, a card. No code of a folder is ever run.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from video_diffusion_pytorch.files import replacing
from video_diffusion_pytorch.version import __version__

LIBRARY = "video-diffusion-pytorch"
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"

# Where a diffusion's state dict has its network
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
"""

Model = TypeVar("Model", bound="Shareable")


class Shareable(nn.Module):
    """The part of `Unet3D` and `GaussianDiffusion` that goes to a folder and comes back.

    It does what `huggingface_hub.ModelHubMixin` does, whose import alone would cost more than the
    rest of this library, and which guesses a model's settings from its arguments.

    Attributes:
        config: The settings the model was built with, in plain numbers, texts and tuples.
    """

    config: dict[str, Any]
    _part: ClassVar[str]
    _classes: ClassVar[dict[str, type[Shareable]]] = {}

    def __init_subclass__(cls, part: str | None = None, **kwargs: Any) -> None:
        """Makes known which class the settings of one name in `config.json` belong to."""
        super().__init_subclass__(**kwargs)
        if part is not None:
            cls._part = part
            cls._classes[part] = cls

    def _to_share(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings by part, and tensors."""
        return {self._part: self.config}, self.state_dict()

    @classmethod
    def _build(cls: type[Model], config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Model:
        """A model of settings by part, its weights still random."""
        return cls(**{**config[cls._part], **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the model to a folder, from which `from_pretrained` builds it again.

        Args:
            folder: Made if need be. `config.json` and `model.safetensors` in it are replaced,
                and a `README.md` is added if there is none.

        Raises:
            ValueError: If the folder is a file, if the network of a diffusion is not a `Unet3D`,
                if tensors are sharded or without data, or if a setting is no plain value.

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
        config, tensors = self._to_share()
        about = {"library": LIBRARY, "version": __version__}
        _write_model(folder, {**about, **config}, tensors, self._card(name))

    def _card(self, name: str) -> str:
        return _CARD.format(
            library=LIBRARY,
            version=__version__,
            name=name,
            class_name=self._classes[self._part].__name__,
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
        """Builds the model that a folder or a repository of the Hugging Face Hub holds.

        `Unet3D` takes its part of a diffusion, too.

        Args:
            folder_or_repo: A folder that `save_pretrained` wrote, or else the name of a repository,
                such as `"user/my-model"`.
            revision: Branch, tag or commit of the repository; None for its main branch.
            cache_dir: Where downloads are kept; None for the place that huggingface_hub chooses.
            token: For a private repository; None for the one that was stored by logging in.
            force_download: Whether to download anew what is already there.
            local_files_only: Whether to use only what was downloaded before.
            **overrides: Keywords of the constructor, in the place of the saved settings.

        Returns:
            The model in evaluation mode, on the CPU, in the types of the saved tensors.

        Raises:
            FileNotFoundError: If there is no such folder or repository, or a file in it is missing.
            TypeError: If an override is no keyword of the constructor.
            ValueError: If a file is damaged or of something else, or an override contradicts the
                weights.
        """
        _check_overrides(cls, overrides)
        options: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        config_file = _find_file(folder_or_repo, CONFIG_FILE, options)
        config = _read_config(config_file)
        if not isinstance(config.get(cls._part), dict):
            raise ValueError(
                f"from_pretrained: {config_file} must hold the settings of a {cls.__name__} under "
                f"{cls._part}, got those of a Unet3D alone; load it with Unet3D.from_pretrained, "
                f"and build a {cls.__name__} around it"
            )
        weights_file = _find_file(folder_or_repo, WEIGHTS_FILE, options)
        tensors = _read_tensors(weights_file)
        if "diffusion" in config and cls._part == "unet":
            own = (name for name in tensors if name.startswith(NETWORK_PREFIX))
            tensors = {name.removeprefix(NETWORK_PREFIX): tensors[name] for name in own}
        try:
            check_network_size(cls._classes["unet"], config, tensors)
            model = cls._build(config, overrides)
        except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"from_pretrained: the settings in {config_file}, and the arguments, must build a "
                f"{cls.__name__}, got {reason}; leave the arguments out, or use the version that "
                f"wrote the file, {config.get('version', 'unknown')}, this being {__version__}"
            ) from error
        _take_types(model, tensors)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"from_pretrained: the tensors in {weights_file} must fit the settings in "
                f"{config_file.name} and the arguments, got {' '.join(str(error).split())[:300]}; "
                "leave out the arguments that change the model, or save it anew"
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
        """Writes the model to a repository of the Hugging Face Hub, in one commit.

        Args:
            repo_id: Name of the repository, such as `"user/my-model"`; made if need be. A
                `README.md` that it has stays as it is.
            commit_message: What the commit is called.
            private: Whether a new repository is private; None for the account's default.
            token: Of an account that may write there; None for the one that was stored by
                logging in.
            branch: Branch to commit to; None for the main one.
            create_pr: Whether to open a pull request instead.

        Returns:
            The address of the commit.

        Raises:
            ValueError: As `save_pretrained`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            # what can't be saved shall not leave an empty repository
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


def _write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], card: str
) -> None:
    """Writes the files of a model; each is whole, or as it was."""
    from safetensors.torch import save_file

    text = _as_json(config)
    whole = {name: _whole(name, value) for name, value in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"save_pretrained: {folder} must be a folder, got a path where a file is; choose "
            "another"
        ) from error
    with replacing(folder / WEIGHTS_FILE) as unfinished:
        save_file(whole, unfinished, {"format": "pt"})
    with replacing(folder / CONFIG_FILE) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    if not (folder / CARD_FILE).exists():
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _find_file(
    folder_or_repo: str | os.PathLike[str], name: str, options: Mapping[str, Any]
) -> Path:
    """A file of a folder, or of a repository, from which it is downloaded if need be."""
    if Path(folder_or_repo).is_file():
        raise FileNotFoundError(
            f"from_pretrained: {folder_or_repo} must be a folder that save_pretrained wrote, got a "
            "file; load a training file with load_diffusion"
        )
    if Path(folder_or_repo).is_dir():
        file = Path(folder_or_repo) / name
        if not file.is_file():
            raise FileNotFoundError(
                f"from_pretrained: {folder_or_repo} must hold {CONFIG_FILE} and {WEIGHTS_FILE}, "
                f"got a folder without {name}; write it with save_pretrained, or load a training "
                "file with load_diffusion"
            )
        return file
    from huggingface_hub import errors, hf_hub_download

    repo = os.fspath(folder_or_repo)
    missing = (
        errors.HFValidationError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    )
    try:
        return Path(hf_hub_download(repo, name, **options))
    except missing as error:
        raise FileNotFoundError(
            f"from_pretrained: {repo} must be a folder here, or a repository of the Hugging Face "
            f"Hub that can be reached, with {name} in it, got {type(error).__name__} "
            f"({_short(error)}); check the name, the network, and for a private one the token"
        ) from error


def _read_config(file: Path) -> dict[str, Any]:
    """The settings in a `config.json`."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"from_pretrained: {file} must be JSON, got a file that is cut off, altered or of "
            f"another kind ({_short(error)}); save or download the model again"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("unet"), dict):
        found = ", ".join(list(config)[:5]) if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"from_pretrained: {file} must hold the settings of a Unet3D under unet, got "
            f"{found or 'nothing'}; use a model that save_pretrained wrote"
        )
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a `model.safetensors`, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"from_pretrained: {file} must hold tensors in the safetensors format, got a file that "
            f"is cut off, altered or of another kind ({_short(error)}); save or download the "
            "model again"
        ) from error


def _as_json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            "save_pretrained: the model's config must hold finite numbers, texts and tuples of "
            f"them, got what a JSON file can't hold ({error}); build the model with plain values"
        ) from error


def _whole(name: str, value: Any) -> Tensor:
    """A tensor as safetensors takes it: on the CPU, contiguous, in memory of its own."""
    if not torch.is_tensor(value) or value.is_meta or hasattr(value, "full_tensor"):
        kind = type(value).__name__
        raise ValueError(
            f"save_pretrained: {name} must be a tensor that is whole and has data, got a "
            f"{'meta tensor' if getattr(value, 'is_meta', False) else kind}; save a checkpoint of "
            "the training, load it with load_diffusion, and save that"
        )
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_overrides(cls: type[Shareable], overrides: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    unknown = [name for name in overrides if name not in named]
    if unknown and len(named) == len(parameters):
        raise TypeError(
            f"from_pretrained: further arguments must be keywords of {cls.__name__}, got "
            f"{', '.join(unknown)}; it has {', '.join(named)}"
        )


def check_network_size(
    network: type[nn.Module], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Refuses settings of a model that is much larger than its weights, before it is built.

    Args:
        network: The class of the network.
        config: Settings by part: `unet`, and for a diffusion `diffusion`.
        tensors: The weights.

    Raises:
        ValueError: If the network has more parameters than the weights have bytes, or the
            diffusion more steps.
    """
    storages = (tensor.untyped_storage() for tensor in tensors.values())
    # not the numbers: a tensor may repeat a single one
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    most, count = held + 2**20, 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        # while it is built: one of a billion blocks would take hours even without memory
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
    """Gives the model the types of the tensors it shall load, such as bfloat16."""
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        if name in tensors and tensors[name].is_floating_point() and value.is_floating_point():
            value.data = value.data.to(tensors[name].dtype)
