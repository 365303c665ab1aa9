"""Errors of the library on a device: the checks of `on_a_gpu.py`."""

from __future__ import annotations

import copy
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from against_reference import Case
from attention_kernels import BACKENDS, error_of
from gpu_run import TINY, Clips, Run, tf32, trainer_of
from kill_and_resume import differing
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, to_reference_state_dict
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
# relative; what float32 must keep of the reference's numbers
PARITY = 1e-5


def correctness(run: Run) -> None:
    """The reference's numbers, other precisions than float32, and attention's kernels."""
    title = "relative errors against the numbers of the reference, fp32"
    parities = {"unet": network_parity, "diffusion": diffusion_parity}
    with tf32(False):
        for kind, parity in parities.items():
            for path in sorted(GOLDEN.glob(f"{kind}_*.pt")):
                row = run.add(title, path.stem, parity, run, path)
                # also if it is NaN
                if row is not None and not max(row.values()) <= PARITY:
                    run.fail(f"{title}: {path.stem}", f"must be at most {PARITY}, got {row}")
    run.attempt("relative errors against fp32", "all", compare_precisions, run)
    for precision, task in (("bf16", "training"), ("bf16", "sampling"), ("fp32", "training")):
        run.attempt("kernels of attention", task, attention_kernels_of, run, precision, task)


def network_parity(run: Run, path: Path) -> dict[str, float]:
    """Errors of a network's outputs and of the norms of its gradients."""
    record = torch.load(path, weights_only=True, map_location=run.device)
    groups = 8 if record["reference_version"].startswith("0.6") else None
    unet = Unet3D(**record["config"], resnet_groups=groups).to(run.device)
    unet.load_state_dict(record["state_dict"])
    x, time_steps, cond = record["x"], record["time"], record["cond"]
    found = [unet(x, time_steps, cond=cond)]
    F.l1_loss(found[0], record["target"]).backward()
    expected = [record["output"]]
    if cond is not None:
        found.append(unet(x, time_steps, cond=cond, null_cond_prob=1.0))
        found.append(unet.forward_with_cond_scale(x, time_steps, cond=cond, cond_scale=3.0))
        expected += [record["output_null"], record["output_cond_scale_3"]]
    norms = {n: None if p.grad is None else p.grad.norm() for n, p in unet.named_parameters()}
    norms = to_reference_state_dict(norms)
    pairs = [(norms[name], norm) for name, norm in record["grads"].items()]
    errors = map(error_of, found, expected)
    return {"output": max(errors), "gradient_norms": error_of(*zip(*pairs, strict=True))}


class Toy(nn.Module):
    """The denoiser of the records of a diffusion."""

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Maps videos to videos."""
        return torch.tanh(0.3 * x + t.view(-1, 1, 1, 1, 1) * 1e-3)

    def forward_with_cond_scale(
        self, x: Tensor, t: Tensor, cond: Any = None, cond_scale: float = 1.0
    ) -> Tensor:
        """The same, scaled."""
        return self(x, t) * cond_scale


def diffusion_parity(run: Run, path: Path) -> dict[str, float]:
    """Errors of mean and variances of a denoising step."""
    record = torch.load(path, weights_only=True, map_location=run.device)
    diffusion = GaussianDiffusion(Toy(), **record["config"]).to(run.device)
    x_t, t = record["q_sample"], record["t"]
    pairs = [
        (diffusion.p_mean_variance(x_t, t, clip_denoised=True), record["p_mean_variance"]),
        (
            diffusion.p_mean_variance(x_t, t, clip_denoised=False, cond_scale=2.0),
            record["p_mean_variance_unclipped_scale2"],
        ),
    ]
    return {"output": max(error_of(*pair) for pair in pairs)}


Results = tuple[Tensor, dict[str, Tensor]]


def results_of(case: Case, precision: str, scale: float | None = None) -> Results:
    """Output and gradients of a case's network in a precision.

    In fp16 the loss is scaled, as by a `GradScaler`: by 2^16, or half of it until nothing
    overflows.
    """
    unet = case.unet
    if scale is None:
        scale = 2.0**16 if precision == "fp16" else 1.0
    unet.zero_grad()
    case.case["precision"] = precision
    with case.autocast():
        output = unet(case.videos, case.t)
    target = case.videos.flip(0)
    (scale * F.mse_loss(output.to(target.dtype), target)).backward()
    found = {n: p.grad / scale for n, p in unet.named_parameters() if p.grad is not None}
    unet.zero_grad()
    is_finite = all(bool(gradient.isfinite().all()) for gradient in found.values())
    if scale > 1 and not is_finite:
        return results_of(case, precision, scale / 2)
    return output.detach(), found


def errors_of(found: Results, expected: Results) -> dict[str, Any]:
    """Relative errors of output and gradients, and the largest one of a parameter's gradient."""
    least = 1e-2 * max(gradient.norm() for gradient in expected[1].values())
    by_name = {
        name: error_of(found[1][name], gradient)
        for name, gradient in expected[1].items()
        # one that is zero in exact arithmetic is rounding error
        if gradient.norm() > least
    }
    worst = max(by_name, key=lambda name: by_name[name])
    return {
        "output": error_of(found[0], expected[0]),
        "gradients": error_of([found[1][name] for name in expected[1]], [*expected[1].values()]),
        "worst_gradient": by_name[worst],
        "of": worst,
    }


def compare_precisions(run: Run) -> None:
    """Float32 against float64, and others against float32, on the same weights and videos."""
    title, batch = "relative errors against fp32", min(4, run.size.batch)
    case = run.ours("forward", "fp32", shape=(batch, *run.size.clip))
    with tf32(False):
        exact = results_of(case, "fp32")
        run.add(title, "fp32 against float64", against_float64, case, exact)
    if run.is_cuda:
        with tf32(True):
            run.add(title, "fp32 with TF32", lambda: errors_of(results_of(case, "fp32"), exact))
    for precision in ("bf16", "fp16"):
        run.add(title, precision, lambda p=precision: errors_of(results_of(case, p), exact))


def against_float64(case: Case, found: Results) -> dict[str, Any]:
    """Errors of results in float32 against the same network in float64."""
    double = copy.copy(case)
    double.unet, double.videos = copy.deepcopy(case.unet).double(), case.videos.double()
    return errors_of(found, results_of(double, "fp32"))


class Kernels(TorchDispatchMode):
    """Notes the kernels of `F.scaled_dot_product_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the kernel."""
        name = func.__name__.partition(".")[0]
        if "scaled_dot_product" in name:
            self.names.add(name.removeprefix("_scaled_dot_product_"))
        return func(*args, **(kwargs or {}))


class AttentionCalls(TorchFunctionMode):
    """Notes the calls of `F.scaled_dot_product_attention`, by their shapes and dtypes.

    Attributes:
        calls: How many there were of each kind.
        examples: Arguments, without values, and kernels of each kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.examples: dict[str, tuple[list[Tensor], dict[str, Any], set[str]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls the function."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        with Kernels() as kernels:
            out = func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        kind = f"{'x'.join(map(str, args[0].shape))} {str(args[0].dtype).removeprefix('torch.')}"
        if mask is not None:
            learned = "learned " if mask.requires_grad else ""
            kind += f", {learned}bias {'x'.join(map(str, mask.shape))}"
        self.calls[kind] += 1
        given = [unfilled(each) for each in args]
        options = {**kwargs, "attn_mask": None if mask is None else unfilled(mask)}
        self.examples.setdefault(kind, (given, options, kernels.names))
        return out


def unfilled(tensor: Tensor) -> Tensor:
    """A tensor on the meta device, of the same shape, strides, dtype and need of a gradient."""
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return like.requires_grad_(tensor.requires_grad)


def attention_kernels_of(run: Run, precision: str, task: str) -> None:
    """Which kernels the network's attention calls take, and which ones could."""
    case = run.ours("forward", precision, shape=(run.size.batch, *run.size.clip))
    with torch.set_grad_enabled(task == "training"), case.autocast(), AttentionCalls() as seen:
        case.unet(case.videos, case.t)
    del case
    run.free()
    for kind, (args, options, kernels) in seen.examples.items():
        row: dict[str, Any] = {"calls": seen.calls[kind]}
        row["kernel"] = ", ".join(sorted(kernels)) or "products"
        reasons = {}
        for name, backend in BACKENDS.items():
            reasons[name] = why_not(run, backend, args, options)
            row[name] = "no" if reasons[name] else "yes"
        run.put("kernels of attention", f"{task}, {precision}: {kind}", **row, _why_not=reasons)


def why_not(run: Run, backend: Any, args: Sequence[Tensor], options: dict[str, Any]) -> str | None:
    """Why a backend cannot compute a call and its gradients; None if it can."""

    def filled(like: Any) -> Any:
        if not isinstance(like, Tensor):
            return like
        tensor = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=run.device)
        return tensor.normal_().requires_grad_(like.requires_grad)

    given, keywords = [filled(one) for one in args], {k: filled(v) for k, v in options.items()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*given, **keywords)
            if out.requires_grad:
                out.backward(torch.randn_like(out))
        except RuntimeError as error:
            return "; ".join([str(error), *(str(one.message) for one in warned)])[:1000]
    return None


# resumed runs


def resume(run: Run) -> None:
    """Whether a run that is resumed ends as one that is not interrupted, bit by bit."""
    # read when cuBLAS starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for what, is_deterministic in {"default": False, "deterministic": True}.items():
        run.add("ends of runs", f"{what} algorithms", ends_of_runs, run, what, is_deterministic)


def ends_of_runs(run: Run, name: str, is_deterministic: bool) -> dict[str, Any]:
    """What differs from an uninterrupted run in a second one, and in a resumed one."""
    torch.use_deterministic_algorithms(is_deterministic)
    ends = {}
    for kind, stops in {"whole": [3], "again": [3], "resumed": [2, 3]}.items():
        folder = run.scratch / f"{name}-{kind}"
        for steps in stops:
            how = {"dataset": Clips(8, run.size.clip), "num_workers": 0, "train_batch_size": 2}
            how |= {"train_num_steps": steps, "resume": "auto", "train_lr": 1e-3, "log_every": 1}
            trainer_of(run, {**TINY.model, "dim": 16}, folder, **how).train()
        ends[kind] = read_checkpoint(list_checkpoints(folder)[-1])
    found = {}
    for kind in ("again", "resumed"):
        names = [*differing(ends["whole"], ends[kind], "")]
        found[kind] = f"{len(names)} differ, such as {names[0]}" if names else "identical"
    return {"uninterrupted_again": found["again"], "resumed": found["resumed"]}
