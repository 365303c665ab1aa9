"""Where training computes, in which precision, and in how many processes."""

from __future__ import annotations

import atexit
import inspect
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.training.sharding import (
    gradient_sync,
    hidden_from_accelerate,
    shard,
    wanted_by_launcher,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = ("no", "bf16", "fp16")

# All processes reach what they wait for in the same order
turns = itertools.count()


def half_precision(device_type: str) -> str:
    """The 16-bit format a device trains in: `"bf16"` where the hardware has it, else `"fp16"`."""
    if device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16"
    return "bf16"


def _fastest_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def make_accelerator(
    amp: bool,
    device: str | torch.device | None,
    *,
    mixed_precision: str | None = None,
    log_with: Any = None,
    folder: Any = None,
) -> Accelerator:
    """The engine that knows the device, the processes, the precision and the loss scale.

    Args:
        amp: Whether to compute in half precision where that is safe.
        device: `"cpu"`, `"cuda"` or `"mps"`; None for the fastest there is. Which of several
            GPUs is `CUDA_VISIBLE_DEVICES`'s to say, or the launcher's.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`, in the place of `amp`; None to go by `amp`,
            or by what `accelerate launch` was told.
        log_with: Trackers, as accelerate takes them.
        folder: Where trackers may write.

    Raises:
        ValueError: If the machine has no such device, or there is no such precision.
    """
    # imported on first use, as not everybody trains
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    wanted = _fastest_device() if device is None else str(device).removesuffix(":0")
    if wanted not in ("cpu", _fastest_device()):
        raise ValueError(
            f"Trainer: device must be 'cpu' or this machine's accelerator, "
            f"{_fastest_device()!r}, got {shown(device)}; leave it out to use the fastest"
        )
    precision = _precision(amp, mixed_precision, wanted)
    # accelerate keeps one state per process, but a notebook may make a second, different Trainer
    if AcceleratorState._shared_state:
        state = AcceleratorState()
        if (state.mixed_precision, state.device.type) != (precision, wanted):
            AcceleratorState._reset_state(
                reset_partial_state=not torch.distributed.is_initialized()
            )
    was_connected = _is_connected()
    with hidden_from_accelerate():
        accelerator = Accelerator(
            cpu=wanted == "cpu", mixed_precision=precision, log_with=log_with, project_dir=folder
        )
    if wanted == "cpu" and _is_connected() and not was_connected:
        atexit.register(_disconnect)
    return accelerator


def _is_connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _disconnect() -> None:
    """At the end of the process: lets gloo's threads go, of which one else aborts it now and then.

    A thread drops the tensors of the last exchange only after the exchange is over, and needs
    Python for that, which may be gone by then. NCCL works otherwise, and might wait here for a
    process that failed.
    """
    time.sleep(0.1)
    if _is_connected():
        torch.distributed.destroy_process_group()


def _precision(amp: bool, mixed_precision: str | None, device_type: str) -> str:
    if mixed_precision is None:
        told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
        return half_precision(device_type) if amp else told
    if mixed_precision not in PRECISIONS or (amp and mixed_precision == "no"):
        raise ValueError(
            f"Trainer: mixed_precision must be one of {', '.join(PRECISIONS)}, and not 'no' with "
            f"amp=True, got {shown(mixed_precision)}; leave one of the two out"
        )
    if mixed_precision == "fp16" and device_type == "cpu":
        raise ValueError(
            "Trainer: on a CPU mixed_precision must be 'bf16' or 'no', got 'fp16', for which there "
            "is no loss scale, so that small gradients would be lost; use 'bf16'"
        )
    return mixed_precision


class Processes:
    """The part of a Trainer that speaks with the other processes; `Trainer` has the attributes."""

    accelerator: Accelerator
    model: Any
    parallel_model: Any
    device: torch.device
    fsdp: bool
    _went_through_parallel: bool
    # after an error, when the other processes may never answer
    _is_alone = False

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self._is_alone or self.accelerator.is_main_process

    @property
    def num_processes(self) -> int:
        """How many processes train together."""
        return 1 if self._is_alone else self.accelerator.num_processes

    @property
    def process(self) -> int:
        """Number of this process, from 0."""
        return self.accelerator.process_index

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum of a tensor that every process has."""
        return values if self.num_processes == 1 else self.accelerator.reduce(values, "sum")

    def from_main(self, value: Any) -> Any:
        """What the main process has, on all of them; a small object of plain values."""
        if self.num_processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def from_all(self, value: Any) -> list[Any]:
        """What each process has, a small object of plain values; by number of the process."""
        if self.num_processes == 1:
            return [value]
        values: list[Any] = [None] * self.num_processes
        torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process do first what the others then find done, however long it takes.

        Raises:
            RuntimeError: On the other processes, if the main one fails at it, or is gone.
        """
        turn = f"main_first/{next(turns)}"
        if not self.is_main:
            # a collective would time out
            _wait_for(turn)
        failure = None if self.is_main else self.from_main(None)
        if failure is not None:
            raise RuntimeError(f"Trainer: the main process stopped, see there: {failure}")
        try:
            yield
        except BaseException as error:
            if self.is_main:
                self._tell(turn, f"{type(error).__name__}: {error}")
            raise
        if self.is_main:
            self._tell(turn, None)

    def _tell(self, turn: str, failure: str | None) -> None:
        if self.num_processes > 1 and _is_connected():
            _store().set(turn, "done")
        self.from_main(failure)

    def _is_first(self, what: str) -> bool:
        """Whether this process is the first that asks; none waits for another."""
        return self.num_processes == 1 or _store().add(what, 1) == 1

    def share_loader(self, loader: Any) -> Any:
        """A loader with an order of its own, of which each process gets every n-th batch.

        Raises:
            ValueError: If there are several processes, and it is none of torch's.
        """
        if self.num_processes == 1:
            return loader
        if not isinstance(loader, DataLoader):
            raise ValueError(
                "Trainer: in several processes a dataloader must be torch's, which can be shared "
                f"between them, got {type(loader).__name__}; pass a dataset, or train in one "
                "process"
            )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

    def _share_model(self, averages: Sequence[nn.Module]) -> Any:
        """Shares the model between the processes; gives what is called for the loss.

        Args:
            averages: Further models, which are laid out as the model is.
        """
        if self.fsdp:
            mesh = self._mesh()
            # the averages sample in full precision
            is_bf16 = self.accelerator.mixed_precision == "bf16"
            shard(self.model, mesh, mp_dtype=torch.bfloat16 if is_bf16 else None)
            for average in averages:
                shard(average, mesh)
            return self.model
        if self.num_processes == 1:
            return self.model
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        # the buffers are the noise schedule, which does not change; older torch has one name only
        newer, older = "forward_sync_buffers", "broadcast_buffers"
        options: dict[str, Any] = {newer if newer in known else older: False}
        parallel = nn.parallel.DistributedDataParallel(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **options,
        )
        parallel.register_forward_pre_hook(self._note_parallel)
        return parallel

    def _note_parallel(self, *_: Any) -> None:
        self._went_through_parallel = True

    def _mesh(self) -> Any:
        if not torch.distributed.is_initialized():
            raise ValueError(
                "Trainer: fsdp must be run in several processes, got one that no launcher "
                "started; start the script with torchrun or accelerate launch, or leave fsdp out"
            )
        return torch.distributed.init_device_mesh(self.device.type, (self.num_processes,))

    def _exchange(self, is_last: bool) -> Any:
        """A context for a micro-batch: gradients are exchanged with the last one of a step."""
        if self.fsdp:
            gradient_sync(self.model, is_last)
        elif not is_last and self.parallel_model is not self.model:
            return self.parallel_model.no_sync()
        return nullcontext()


def _store() -> Any:
    """The keys and values that the processes share; reading it is no collective."""
    store = torch.distributed.distributed_c10d._get_default_store()
    return torch.distributed.PrefixStore("video_diffusion_pytorch", store)


def _wait_for(key: str) -> None:
    """Waits until the main process has put something there, however late."""
    pause = 0.01
    try:
        while _is_connected() and not _store().check([key]):
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
    except RuntimeError as error:
        raise RuntimeError(
            f"Trainer: the main process must stay alive, got no answer from it ({error}); see its "
            "own messages, and start all processes again"
        ) from error


def use_fsdp(fsdp: bool) -> bool:
    """Whether to shard the model: because the Trainer, or `accelerate launch`, was told so."""
    return wanted_by_launcher() or fsdp


def compile_network(*diffusions: Any) -> None:
    """Compiles the network of each, in place: `Unet3D`'s block by block, others as a whole."""
    for diffusion in diffusions:
        network: Any = unwrap(diffusion.denoise_fn)
        if hasattr(network, "compile_blocks"):
            network.compile_blocks()
        else:
            network.compile()
