"""The processes of a run: device, precision, collectives and the parallel model."""

from __future__ import annotations

import atexit
import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.training.fsdp import requested_by_launcher, shard

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = ("no", "bf16", "fp16")

T = TypeVar("T")
# Numbers of the keys in the process group's store, in the same order on all processes
_turns = itertools.count()


def half_precision(device_type: str) -> str:
    """The 16-bit format a device trains in: `"bf16"` where the hardware has it, else `"fp16"`."""
    if device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16"
    return "bf16"


def fastest_device() -> str:
    """The fastest device of this machine: `"cuda"`, `"mps"` or `"cpu"`."""
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
    """Makes the `Accelerator`: device, processes, precision and loss scale.

    Args:
        amp: Whether to train in mixed precision.
        device: `"cpu"`, `"cuda"` or `"mps"`; None for the fastest available. Of several GPUs,
            `CUDA_VISIBLE_DEVICES` or the launcher chooses one.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`; None for that of `amp` or of
            `accelerate launch`.
        log_with: Trackers, as accelerate takes them.
        folder: Folder for files of trackers.

    Raises:
        ValueError: If the device is not available, or the precision is unknown.
    """
    # imported on first use, as it takes long
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    wanted = fastest_device() if device is None else str(device).removesuffix(":0")
    if wanted not in ("cpu", fastest_device()):
        raise ValueError(
            f"Trainer: device must be 'cpu' or this machine's accelerator, "
            f"{fastest_device()!r}, got {shown(device)}; leave it out to use the fastest"
        )
    precision = _precision(amp, mixed_precision, wanted)
    # accelerate has one global state, but a notebook may make a second, different Trainer
    if AcceleratorState._shared_state:
        state = AcceleratorState()
        if (state.mixed_precision, state.device.type) != (precision, wanted):
            AcceleratorState._reset_state(reset_partial_state=not _is_connected())
    # Accelerate would wrap model and optimizer for FSDP itself
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        accelerator = Accelerator(
            cpu=wanted == "cpu", mixed_precision=precision, log_with=log_with, project_dir=folder
        )
    finally:
        if fsdp is not None:
            os.environ["ACCELERATE_USE_FSDP"] = fsdp
    if wanted == "cpu":
        atexit.register(_disconnect)
    return accelerator


def _is_connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _disconnect() -> None:
    """Ends the gloo process group at exit.

    A gloo thread frees the tensors of the last collective late, and aborts the process if Python
    has exited by then. NCCL is not affected, and might wait for a failed process.
    """
    if _is_connected():
        time.sleep(0.1)
        torch.distributed.destroy_process_group()


def _precision(amp: bool, mixed_precision: str | None, device_type: str) -> str:
    if mixed_precision is None:
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
        return half_precision(device_type) if amp else launched
    if mixed_precision not in PRECISIONS or (amp and mixed_precision == "no"):
        raise ValueError(
            f"Trainer: mixed_precision must be one of {', '.join(PRECISIONS)}, and not 'no' with "
            f"amp=True, got {shown(mixed_precision)}; leave one of the two out"
        )
    if mixed_precision == "fp16" and device_type == "cpu":
        raise ValueError(
            "Trainer: on a CPU mixed_precision must be 'bf16' or 'no', got 'fp16', for which there "
            "is no loss scale, so that small gradients would be lost"
        )
    return mixed_precision


class Processes:
    """The process group of a run.

    Args:
        accelerator: From `make_accelerator`.
        fsdp: Whether each process keeps only a shard of the model, as with
            `accelerate launch --use_fsdp`.

    Attributes:
        device: The device of this process.
        is_alone: Set after an error, when others may never respond: this process then acts as if it
            were the only one.
    """

    def __init__(self, accelerator: Accelerator, fsdp: bool = False) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.fsdp = requested_by_launcher() or fsdp
        self.is_alone = False
        self._calls = 0  # of the parallel model

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes the files."""
        return self.is_alone or self.accelerator.is_main_process

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1 if self.is_alone else self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""
        return self.accelerator.process_index

    @property
    def share(self) -> tuple[int, int]:
        """Rank and world size."""
        return self.rank, self.world_size

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes (all-reduce)."""
        return values if self.world_size == 1 else self.accelerator.reduce(values, "sum")

    def gather(self, values: Tensor) -> Tensor:
        """The tensors of all processes, joined along the first axis."""
        return values if self.world_size == 1 else self.accelerator.gather(values.contiguous())

    def from_main(self, value: Any) -> Any:
        """The main process's value on all processes; a small object."""
        return self.from_all(value)[0]

    def from_all(self, value: Any) -> list[Any]:
        """The values of all processes by rank (all-gather); small objects."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def together(self, act: Callable[[], T]) -> T:
        """Calls a function on every process; if it fails on one, all raise its error."""
        result, failure = None, None
        try:
            result = act()
        except Exception as error:
            failure = error
        # others may not be picklable
        is_known = failure is None or isinstance(failure, (OSError, ValueError))
        shared = failure if is_known else RuntimeError(f"{type(failure).__name__}: {failure}")
        failures = [one for one in (failure, *self.from_all(shared)) if one is not None]
        if failures:
            raise failures[0]
        return cast(T, result)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block on the main process first, then on the others, without a timeout.

        Raises:
            RuntimeError: On the other processes, if the main one fails or has died.
        """
        turn = f"main_first/{next(_turns)}"
        if not self.is_main:
            # a collective would time out
            _store().wait([turn], timedelta(days=365))
            failure = self.from_main(None)
            if failure is not None:
                raise RuntimeError(f"Trainer: the main process stopped, see there: {failure}")
            yield
            return
        failure = None
        try:
            yield
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self.world_size > 1 and _is_connected():
                _store().set(turn, "done")
            self.from_main(failure)

    def new_race(self) -> str:
        """A key for `is_first`, the same on all processes."""
        return f"first/{next(_turns)}"

    def is_first(self, race: str) -> bool:
        """Whether this process is the first to call this with the key; it does not wait."""
        return self.world_size == 1 or _store().add(race, 1) == 1

    def share_loader(self, loader: Any) -> Any:
        """Divides a user's loader: each process gets every n-th batch.

        Raises:
            ValueError: If there are several processes, and it is not a torch DataLoader.
        """
        if self.world_size == 1:
            return loader
        if not isinstance(loader, DataLoader):
            raise ValueError(
                "Trainer: in several processes a dataloader must be torch's, which can be shared "
                f"between them, got {type(loader).__name__}; pass a dataset, or train in one "
                "process"
            )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

    def share_model(self, model: Any, averages: Sequence[nn.Module]) -> Any:
        """Prepares the model for several processes (DDP or FSDP2).

        Args:
            model: The diffusion; with FSDP it is sharded in place.
            averages: Its averages, which are sharded in the same way.

        Returns:
            The module whose forward computes the loss.
        """
        if self.fsdp:
            if not _is_connected():
                raise ValueError(
                    "Trainer: fsdp must be run in several processes, got one that no launcher "
                    "started; start the script with torchrun or accelerate launch, or leave fsdp "
                    "out"
                )
            mesh = torch.distributed.init_device_mesh(self.device.type, (self.world_size,))
            is_bf16 = self.accelerator.mixed_precision == "bf16"
            shard(model, mesh, mp_dtype=torch.bfloat16 if is_bf16 else None)
            for average in averages:
                # averages sample in full precision
                shard(average, mesh)
            return model
        if self.world_size == 1:
            return model
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        # buffers hold the constant noise schedule; older torch has the second name only
        newer, older = "forward_sync_buffers", "broadcast_buffers"
        options: dict[str, Any] = {newer if newer in known else older: False}
        parallel_model = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **options,
        )
        parallel_model.register_forward_pre_hook(self._count_call)
        return parallel_model

    def _count_call(self, *_: Any) -> None:
        self._calls += 1

    @contextmanager
    def exchange(self, model: Any, parallel_model: Any, is_last: bool) -> Iterator[None]:
        """A context for forward and backward of a micro-batch.

        Gradients are synchronized by the last micro-batch of a step.

        Raises:
            RuntimeError: If the block did not call `parallel_model`.
        """
        if parallel_model is model:
            if self.fsdp:
                model.denoise_fn.set_requires_gradient_sync(is_last)
            yield
            return
        calls = self._calls
        with nullcontext() if is_last else parallel_model.no_sync():
            yield
        if self._calls == calls:
            raise RuntimeError(
                "Trainer: compute_loss must call self.parallel_model, so that the processes "
                "exchange their gradients, got one that calls another model; replace self.model "
                "by self.parallel_model in it"
            )


def _store() -> Any:
    """The key-value store of the process group; reading it is not a collective."""
    store = torch.distributed.distributed_c10d._get_default_store()
    return torch.distributed.PrefixStore("video_diffusion_pytorch", store)


def compile_network(*diffusions: Any) -> None:
    """Compiles the network of each diffusion in place: `Unet3D` by blocks, others as a whole."""
    for diffusion in diffusions:
        network: Any = unwrap(diffusion.denoise_fn)
        if hasattr(network, "compile_blocks"):
            network.compile_blocks()
        else:
            network.compile()
