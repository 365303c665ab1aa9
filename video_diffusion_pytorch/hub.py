"""A trained model becomes a folder that others can load, on a disk or on the Hugging Face Hub.

The folder holds `config.json`, the settings the model was built with, `model.safetensors`, its
tensors, and `README.md`, a card. No code of a folder is ever run.
"""

from __future__ import annotations

import inspect
import itertools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from video_diffusion_pytorch.model_folder import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_file,
    read_config,
    read_tensors,
    write_model,
)
from video_diffusion_pytorch.version import __version__

LIBRARY = "video-diffusion-pytorch"

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
        write_model(folder, {**about, **config}, tensors, self._card(name))

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
        config_file = find_file(folder_or_repo, CONFIG_FILE, options)
        config = read_config(config_file)
        if not isinstance(config.get(cls._part), dict):
            raise ValueError(
                f"from_pretrained: {config_file} must hold the settings of a {cls.__name__} under "
                f"{cls._part}, got those of a Unet3D alone; load it with Unet3D.from_pretrained, "
                f"and build a {cls.__name__} around it"
            )
        weights_file = find_file(folder_or_repo, WEIGHTS_FILE, options)
        tensors = read_tensors(weights_file)
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
