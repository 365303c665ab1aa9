"""Times kernels for attention over a few frames with a learned position bias.

    python benchmarks/attention_kernels.py --device cuda
    python benchmarks/attention_kernels.py --rows 64 --dtype float32 --compiler aot_eager

The network attends over the frames of each pixel: many rows (videos x height x width) of few
positions, with a bias `(heads, n, n)` that needs a gradient. Every candidate gets the same queries,
keys and values `(rows, n, heads, d)`. Its output and gradients are compared with those of products
in float32, by the norm of the difference; one that cannot compute them has an error instead.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from compile_blocks import wait
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from video_diffusion_pytorch.model.attention import MAX_ROWS, attend

# queries, keys, values and bias to the output
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

SEED = 0
# positions of a packed sequence, at most: a tile of the kernels
TILE = 128
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
COLUMNS = ("rows", "n", "kernel", "forward_ms", "both_ms", "extra_mib")
COLUMNS += ("output_error", "gradient_error", "bias_gradient_error", "error")


# candidates


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention` with the bias as its mask, `MAX_ROWS` rows at a time."""
    mask = bias.to(q.dtype)
    slices = zip(*(t.transpose(1, 2).split(MAX_ROWS) for t in (q, k, v)), strict=True)
    out = [F.scaled_dot_product_attention(*qkv, attn_mask=mask) for qkv in slices]
    return (out[0] if len(out) == 1 else torch.cat(out)).transpose(1, 2)


def sdpa_by(backend: SDPBackend, *inputs: Tensor) -> Tensor:
    """`sdpa` by one backend or not at all."""
    with sdpa_kernel(backend):
        return sdpa(*inputs)


def sdpa_packed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`sdpa` with several rows in one sequence, and a mask that keeps them apart."""
    count = packed_rows(q, TILE // q.shape[1])
    row = torch.arange(count, device=q.device).repeat_interleave(q.shape[1])
    mask = bias.repeat(1, count, count).masked_fill(row[:, None] != row, -math.inf)
    inputs = (t.reshape(-1, len(row), *t.shape[2:]) for t in (q, k, v))
    return sdpa(*inputs, mask).reshape(q.shape)


def products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Two batched matrix products and a softmax in float32."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    logits = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5 + bias
    return (logits.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2)


def sums(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Sums of elementwise products, for a compiler to fuse."""
    logits = (q[:, :, None] * k[:, None]).sum(dim=-1, dtype=torch.float32)
    # (rows, queries, keys, heads)
    weights = (logits * q.shape[-1] ** -0.5 + bias.permute(1, 2, 0)).softmax(dim=2)
    return (weights[..., None] * v[:, None]).sum(dim=2).to(v.dtype)


def flex_packed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, block_mask: Any) -> Tensor:
    """FlexAttention over sequences of many rows; its block mask leaves out most other rows."""
    from torch.nn.attention.flex_attention import flex_attention

    n = q.shape[1]

    def add_bias(score: Tensor, _: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[head, i % n, j % n]

    packed = (t.reshape(-1, block_mask.shape[-1], *t.shape[2:]).transpose(1, 2) for t in (q, k, v))
    out = flex_attention(*packed, score_mod=add_bias, block_mask=block_mask)
    return out.transpose(1, 2).reshape(q.shape)


def packed_rows(q: Tensor, most: int) -> int:
    """How many rows, a power of two of at most `most`, share a sequence."""
    return math.gcd(len(q), 1 << max(most, 1).bit_length() - 1)


def make_flex(q: Tensor, compiler: str) -> Attend:
    """FlexAttention, compiled, for rows like `q`."""
    from torch.nn.attention.flex_attention import create_block_mask

    n, length = q.shape[1], packed_rows(q, TILE) * q.shape[1]
    block_mask = create_block_mask(
        lambda b, h, i, j: i // n == j // n, None, None, length, length, device=q.device.type
    )
    return torch.compile(
        partial(flex_packed, block_mask=block_mask), backend=compiler, dynamic=False, fullgraph=True
    )


def make_compiled(function: Attend, q: Tensor, compiler: str) -> Attend:
    """A candidate, compiled for the shape of `q`."""
    return torch.compile(function, backend=compiler, dynamic=False, fullgraph=True)


EAGER: dict[str, Attend] = {
    "the library's": attend,
    "sdpa": sdpa,
    **{f"sdpa, {name}": partial(sdpa_by, backend) for name, backend in BACKENDS.items()},
    "sdpa, packed rows": sdpa_packed,
    "products": products,
}
# made from queries and the name of a compiler
COMPILED: dict[str, Callable[[Tensor, str], Attend]] = {
    "products, compiled": partial(make_compiled, products),
    "sums, compiled": partial(make_compiled, sums),
    "flex, packed rows": make_flex,
}
KERNELS = (*EAGER, *COMPILED)


# one measurement


def make_inputs(
    rows: int, n: int, heads: int, d: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Queries, keys, values, a float32 bias and the gradient of the output, all random."""
    generator = torch.Generator(device).manual_seed(SEED)
    shapes = [(rows, n, heads, d)] * 3 + [(heads, n, n), (rows, n, heads, d)]
    inputs = [torch.randn(s, generator=generator, device=device) for s in shapes]
    return [t if t.shape == (heads, n, n) else t.to(dtype) for t in inputs]


def results(kernel: Attend, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output, and the gradients of queries, keys, values and bias."""
    *given, gradient = inputs
    given = [t.detach().requires_grad_() for t in given]
    out = kernel(*given)
    return [out.detach(), *torch.autograd.grad(out, given, gradient.to(out.dtype))]


def milliseconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of work, after one run that is not counted."""
    work()
    if device.type == "cuda":
        events = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(repeats)]
        for start, end in events:
            start.record()
            work()
            end.record()
        wait(device)
        return statistics.median(start.elapsed_time(end) for start, end in events)
    times = []
    for _ in range(repeats):
        start_time = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start_time))
    return statistics.median(times)


def error_of(actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """Norm of the difference, by the norm of what is expected; NaN or infinite if `actual` is."""
    pairs = (
        [(actual, expected)] if isinstance(actual, Tensor) else zip(actual, expected, strict=True)
    )
    sums = torch.zeros(2, dtype=torch.float64)
    for one, other in pairs:
        difference = (one.to(other.dtype) - other).norm().double().cpu()
        sums += torch.stack((difference, other.norm().double().cpu())).square()
    return (sums[0] / sums[1]).sqrt().item()


def measure(
    name: str, inputs: Sequence[Tensor], expected: Sequence[Tensor], repeats: int, compiler: str
) -> dict[str, Any]:
    """A row of the table: times, memory beyond the inputs, and errors of one kernel.

    Args:
        name: One of `KERNELS`.
        inputs: Of `make_inputs`.
        expected: What `results` gives for products of the inputs in float32.
        repeats: Number of timed runs.
        compiler: Backend of `torch.compile`.
    """
    rows, n = inputs[0].shape[:2]
    device, cuda = inputs[0].device, inputs[0].is_cuda
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"rows": rows, "n": n, "kernel": name}
    before = torch.cuda.memory_allocated() if cuda else 0
    # shapes and kernels before this one do not count towards the limit of recompilations
    torch._dynamo.reset()
    try:
        kernel = EAGER[name] if name in EAGER else COMPILED[name](inputs[0], compiler)
        found = results(kernel, inputs)
        row["output_error"] = error_of(found[0], expected[0])
        row["gradient_error"] = error_of(found[1:4], expected[1:4])
        row["bias_gradient_error"] = error_of(found[4], expected[4])
        del found
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        row["both_ms"] = milliseconds(lambda: results(kernel, inputs), device, repeats)
        if cuda:
            row["extra_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        with torch.no_grad():
            row["forward_ms"] = milliseconds(lambda: kernel(*inputs[:4]), device, repeats)
    # of a kernel that does not exist for these inputs, which is a result
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return row


def float32_results(inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the kernels are compared with."""
    return results(products, [t.float() for t in inputs])


def cells(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    values = (row[name] for name in COLUMNS)
    shown = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
    return f"| {' | '.join(shown)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rows", type=int, default=32 * 64 * 64)
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 10, 16])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=32, help="of a head")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
    options = parser.parse_args(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)

    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for n in options.frames:
        inputs = make_inputs(options.rows, n, options.heads, options.width, dtype, device)
        expected = float32_results(inputs)
        for name in options.kernels:
            row = measure(name, inputs, expected, options.repeats, options.compiler)
            print(cells(row), flush=True)


if __name__ == "__main__":
    main()
