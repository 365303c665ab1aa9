"""Attention over frames and over pixels, and the pre-norm residual layers around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor, nn

from video_diffusion_pytorch.model.blocks import (
    ZEROS,
    LayerNorm,
    Padding,
    frames_as_rows,
    pixels_as_rows,
    rows_as_frames,
    rows_as_pixels,
)
from video_diffusion_pytorch.model.conditioning import TextTokens
from video_diffusion_pytorch.model.cpu_kernels import (
    attention_weights,
    is_eager_on_cpu,
    is_slow_when_fused,
    project,
    rotate_heads_first,
)
from video_diffusion_pytorch.model.embeddings import rotary_tables

RotaryTables = tuple[Tensor, Tensor]

# Keys and values, each `(groups, t, heads, d)`, of tokens that all rows of a group attend to
TokenMemory = tuple[Tensor, Tensor]

# Fused CUDA kernels take the batch as a grid axis, which ends here (pytorch/pytorch#142228).
MAX_ROWS = 65_535


def rotate(x: Tensor, rotary: RotaryTables) -> Tensor:
    """Rotates pairs of neighbouring features by their frame's angle (Su et al. 2021, eq. 34).

    Args:
        x: Queries or keys, `(rows, n, heads, d)`.
        rotary: The tables of `rotary_tables`, for `n` positions and at most `d / 2` pairs;
            features beyond these pairs stay as they are.
    """
    if is_eager_on_cpu(x) and x.shape[-1] % 2 == 0:
        return rotate_heads_first(x, *rotary).transpose(1, 2)
    cos, sin = (table[:, None, :] for table in rotary)
    turned, kept = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    exact = turned.to(torch.promote_types(x.dtype, torch.float32))
    first, second = exact.unflatten(-1, (-1, 2)).unbind(-1)
    both = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(both, dim=-1).flatten(-2).to(x.dtype)
    return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_bias: Tensor | None,
    memory: TokenMemory | None = None,
    q_of_tokens: Tensor | None = None,
) -> Tensor:
    """Softmax attention over axis 1 of `(rows, n, heads, d)`; the output has this shape as well.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        pos_bias: `(heads, n, n)`, query by key, added to the logits; or None.
        memory: Tokens that every query also attends to, without bias; all rows of a group share
            them. None for none.
        q_of_tokens: Queries of these tokens, where they are not `q`.
    """
    scale = v.shape[-1] ** -0.5
    if memory is not None:
        token_k, token_v = memory
        if q_of_tokens is not None:
            # both kinds of queries side by side, and keys that are zero in the other's half
            d = v.shape[-1]
            q = torch.cat((q, q_of_tokens), dim=-1)
            k, token_k = F.pad(k, (0, d)), F.pad(token_k, (d, 0))
        k, v = _with_tokens(k, token_k), _with_tokens(v, token_v)
        if pos_bias is not None:
            pos_bias = F.pad(pos_bias, (0, token_k.shape[1]))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if is_slow_when_fused(q, pos_bias):
        return (attention_weights(q * scale, k, pos_bias) @ v).transpose(1, 2)
    mask = None if pos_bias is None else pos_bias.to(q.dtype)
    slices = zip(q.split(MAX_ROWS), k.split(MAX_ROWS), v.split(MAX_ROWS), strict=True)
    out = [F.scaled_dot_product_attention(*qkv, attn_mask=mask, scale=scale) for qkv in slices]
    return (out[0] if len(out) == 1 else torch.cat(out)).transpose(1, 2)


def _with_tokens(own: Tensor, tokens: Tensor) -> Tensor:
    """The keys or values of rows `(rows, n, heads, d)`, and behind them those of their tokens."""
    groups = own.unflatten(0, (len(tokens), -1))
    shared = tokens[:, None].expand(-1, groups.shape[1], -1, -1, -1)
    return torch.cat((groups, shared), dim=2).flatten(0, 1)


def attend_to_self(
    q: Tensor, k: Tensor, v: Tensor, pos_bias: Tensor | None, memory: TokenMemory | None
) -> Tensor:
    """`attend` for positions that see themselves and the tokens, but not each other.

    Args:
        q: As in `attend`, and so `k` and `v`.
        k: Keys.
        v: Values.
        pos_bias: As in `attend`; only the bias of distance 0 counts.
        memory: As in `attend`; without, a position gets its own value.
    """
    if memory is None:
        return v
    # (groups, heads, rows of a group and their positions, d)
    queries = q.unflatten(0, (len(memory[0]), -1)).flatten(1, 2).transpose(1, 2)
    keys, values = (tokens.transpose(1, 2) for tokens in memory)
    to_tokens = queries @ keys.transpose(2, 3)
    to_self = (q * k).sum(dim=-1).reshape(len(keys), -1, q.shape[2], 1).transpose(1, 2)
    logits = torch.cat((to_self, to_tokens), dim=-1) * q.shape[-1] ** -0.5
    if pos_bias is not None:
        logits = logits + F.pad(pos_bias[:, :1, 0].to(logits.dtype), (0, keys.shape[2]))[:, None]
    weights = logits.softmax(dim=-1).to(v.dtype)
    own = weights[..., :1].transpose(1, 2).reshape(*v.shape[:3], 1) * v
    return own + (weights[..., 1:] @ values).transpose(1, 2).reshape(v.shape)


class Attention(nn.Module):
    """Softmax attention over the positions of a sequence, in several heads.

    Args:
        dim: Number of channels in and out.
        heads: Number of heads.
        dim_head: Width of a head, `d`.
        rotary_emb: Gives the frequencies of the rotary embedding; None for none.
        token_dim: Width of the tokens of captions, which are attended to as well; None for none.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        dim_head: int = 32,
        rotary_emb: RotaryEmbedding | None = None,
        token_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.scale = dim_head**-0.5
        self.heads = heads
        self.rotary_emb = rotary_emb
        self.to_qkv = nn.Linear(dim, dim_head * heads * 3, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)
        self.to_token_kv = None
        if token_dim is not None:
            self.to_token_kv = nn.Linear(token_dim, dim_head * heads * 2, bias=False)

    def forward(
        self,
        x: Tensor,
        pos_bias: Tensor | None = None,
        focus_present_mask: Tensor | None = None,
        rotary: RotaryTables | None = None,
        image_frames: int = 0,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Attends over the second to last axis.

        Args:
            x: `(b, ..., n + image_frames, c)`.
            pos_bias: `(heads, n, n)`, query by key, added to the logits; None for none.
            focus_present_mask: Boolean `(b,)`: where true, a position sees only itself.
            rotary: Tables of `rotary_tables` for `n` positions; None to make those of
                `rotary_emb`, where there is one.
            image_frames: How many positions at the end see only themselves, and are not seen.
            text: Tokens that every position attends to as well, masked or not, without bias and
                without rotary embedding. Those of `text.videos` are for the `n` positions of all
                rows of a video, those of `text.images` for one of the other positions each.

        Returns:
            A tensor of the shape of `x`.
        """
        n = x.shape[-2] - image_frames
        if rotary is None and self.rotary_emb is not None:
            rotary = rotary_tables(self.rotary_emb.freqs, n)
        rows = x.reshape(-1, *x.shape[-2:])
        mask = focus_present_mask
        if mask is not None:
            mask = mask.repeat_interleave(rows.shape[0] // x.shape[0]).view(-1, 1, 1, 1)
        is_narrow = rows.shape[-1] * self.heads <= 2 * self.to_out.weight.shape[1]
        if is_narrow and text is None and pos_bias is not None and is_eager_on_cpu(rows):
            return self._attend_to_inputs(rows, pos_bias, mask, rotary, n).view(x.shape)
        # images see nothing but themselves: without text only their values count
        seen = rows[:, :n] if image_frames and text is None else rows
        inputs = zip((seen, seen, rows), self.to_qkv.weight.chunk(3), strict=True)
        q, k, v = (project(each, weight).unflatten(-1, (self.heads, -1)) for each, weight in inputs)
        of_images = q[:, n:], k[:, n:], v[:, n:]

        # frames
        q, k, v = q[:, :n], k[:, :n], v[:, :n]
        memory = None if text is None else self._memory(text.videos)
        if rotary is None:
            out = attend(q, k, v, pos_bias, memory)
        else:
            out = attend(rotate(q, rotary), rotate(k, rotary), v, pos_bias, memory, q)
        if mask is not None:
            # a position that attends to itself alone gets its own value: no mask needed
            out = torch.where(mask, attend_to_self(q, k, v, pos_bias, memory), out)

        # images
        if image_frames:
            out = torch.cat((out, self._attend_to_images(*of_images, pos_bias, text)), dim=1)
        return project(out.flatten(-2), self.to_out.weight).view(x.shape)

    def _attend_to_inputs(
        self,
        rows: Tensor,
        pos_bias: Tensor,
        mask: Tensor | None,
        rotary: RotaryTables | None,
        n: int,
    ) -> Tensor:
        """Attention that averages its inputs, before one product takes values of all heads.

        With at most `2 d` channels the inputs are smaller than the values of the heads. The two
        linear layers of the values and of the output become one.

        Args:
            rows: `(rows, n + images, c)`.
            pos_bias: As in `forward`.
            mask: Boolean `(rows, 1, 1, 1)`: where true, a position sees only itself.
            rotary: As in `forward`; None for none.
            n: How many positions see each other.
        """
        w_q, w_k, w_v = self.to_qkv.weight.chunk(3)
        seen = rows[:, :n]
        q, k = (
            project(seen, weight).unflatten(-1, (self.heads, -1))
            for weight in (w_q * self.scale, w_k)
        )
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        weights = attention_weights(q.transpose(1, 2), k.transpose(1, 2), pos_bias)
        weights = weights.transpose(1, 2).flatten(1, 2)
        # (rows, n, heads, c)
        averages = torch.bmm(weights, seen).unflatten(1, (n, self.heads))
        if mask is not None:
            averages = torch.where(mask, seen[:, :, None], averages)
        if n < rows.shape[1]:
            own = rows[:, n:, None].expand(-1, -1, self.heads, -1)
            averages = torch.cat((averages, own), dim=1)
        w_v = w_v.unflatten(0, (self.heads, -1))
        w_out = self.to_out.weight.unflatten(1, (self.heads, -1)).transpose(0, 1)
        mix = (w_out @ w_v).transpose(0, 1).flatten(1)
        return project(averages.flatten(2), mix)

    def _memory(self, tokens: Tensor) -> TokenMemory:
        """Keys and values of tokens `(groups, t, c)`."""
        assert self.to_token_kv is not None
        keys_and_values = self.to_token_kv(tokens).unflatten(-1, (2, self.heads, -1))
        return keys_and_values[:, :, 0], keys_and_values[:, :, 1]

    def _attend_to_images(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pos_bias: Tensor | None,
        text: TextTokens | None,
    ) -> Tensor:
        """Positions `(rows, images, heads, d)` that see themselves and tokens of their own."""
        if text is None or text.images is None:
            return v
        videos, images = text.images.shape[:2]
        # (b p) k h d -> (b k) p h d, and back
        q, k, v = (t.unflatten(0, (videos, -1)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        out = attend_to_self(q, k, v, pos_bias, self._memory(text.images.flatten(0, 1)))
        return out.unflatten(0, (videos, images)).transpose(1, 2).flatten(0, 1)


class SpatialLinearAttention(nn.Module):
    """Attention over the pixels of a frame at linear cost (Shen et al. 2021, section 3.2).

    Args:
        dim: Number of channels in and out.
        heads: Number of heads.
        dim_head: Width of a head.
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.scale = dim_head**-0.5
        self.heads = heads
        self.to_qkv = nn.Conv2d(dim, dim_head * heads * 3, 1, bias=False)
        self.to_out = nn.Conv2d(dim_head * heads, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same."""
        out = self._attend_to_pixels(frames_as_rows(x))
        return rows_as_frames(out, x.shape[0], x.shape[3])

    def _attend_to_pixels(self, x: Tensor) -> Tensor:
        """Attends within `(frames, n, c)`, values and summed values never being formed.

        A head gives `out (q (k^T v))` with `v = x W`, and the part in brackets is a small matrix
        of each frame. So `k^T x` is taken first, then all the small factors together, and
        only the queries and keys are as large as a frame.
        """
        w_q, w_k, w_v = self.to_qkv.weight.flatten(1).chunk(3)
        q = project(x, w_q).unflatten(-1, (self.heads, -1)).softmax(dim=-1).flatten(-2)
        k = project(x, w_k).softmax(dim=1)

        # k^T x of all frames of a head in one product: (heads, f d, c)
        summary = (x.transpose(1, 2) @ k).unflatten(2, (self.heads, -1))
        summary = summary.permute(2, 0, 3, 1).flatten(1, 2)
        # weights of each head: (heads, c, d) and (heads, d, c)
        values = w_v.unflatten(0, (self.heads, -1)).transpose(1, 2)
        w_out = self.to_out.weight.flatten(1).unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        mix = summary @ (values * self.scale) @ w_out
        # (f, heads d, c)
        mix = mix.unflatten(1, (x.shape[0], -1)).transpose(0, 1).flatten(1, 2)

        assert self.to_out.bias is not None
        return torch.baddbmm(self.to_out.bias, q, mix.to(q.dtype))


class TemporalAttention(nn.Module):
    """Pre-norm residual attention of each pixel over its frames.

    Args:
        dim: Number of channels.
        heads: Number of heads.
        dim_head: Width of a head.
        token_dim: Width of the tokens of captions that are attended to as well; None for none.
        shift: Whether channels are first shifted between frames.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        token_dim: int | None = None,
        shift: bool = False,
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.attn = Attention(dim, heads=heads, dim_head=dim_head, token_dim=token_dim)
        self.shift = shift

    def forward(
        self,
        x: Tensor,
        pos_bias: Tensor,
        rotary: RotaryTables,
        focus_present_mask: Tensor | None = None,
        image_frames: int = 0,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same; the other arguments as in `Attention`.

        `pos_bias` may have more heads than this layer, which uses the first ones.
        """
        b, h = x.shape[0], x.shape[3]
        pixels = pixels_as_rows(x)
        mask = focus_present_mask
        if mask is not None:
            mask = mask.repeat_interleave(pixels.shape[0] // b)
        inner = self.norm(pixels, dim=-1)
        if self.shift:
            inner = shift_in_time(inner, mask, image_frames)
        bias = pos_bias[: self.attn.heads]
        out = self.attn(inner, bias, mask, rotary, image_frames, text)
        return x + rows_as_pixels(out, b, h)


class SpatialAttention(nn.Module):
    """Pre-norm residual attention of each frame over its pixels.

    Args:
        dim: Number of channels.
        heads: Number of heads.
        dim_head: Width of a head.
        token_dim: As in `TemporalAttention`; without effect if `linear`.
        shift: Whether channels are first shifted between pixels.
        linear: Whether the attention has linear cost, as `SpatialLinearAttention`, not softmax.
        mode: How frames continue beyond their edges, for the shift.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int = 32,
        token_dim: int | None = None,
        shift: bool = False,
        linear: bool = False,
        mode: Padding = ZEROS,
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        if linear:
            self.attn: nn.Module = SpatialLinearAttention(dim, heads, dim_head)
        else:
            self.attn = Attention(dim, heads, dim_head, token_dim=token_dim)
        self.shift, self.linear, self.mode = shift, linear, mode

    def forward(self, x: Tensor, text: TextTokens | None = None) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same; `text` holds the tokens that frames see."""
        inner = self.norm(x)
        if self.shift:
            inner = shift_in_space(inner, self.mode)
        if self.linear:
            return x + self.attn(inner)
        if text is not None:
            text = TextTokens(text.of_each_frame(x.shape[2]))
        out = self.attn(frames_as_rows(inner), text=text)
        return x + rows_as_frames(out, x.shape[0], x.shape[3])


def shift_in_time(
    x: Tensor, focus_present_mask: Tensor | None = None, image_frames: int = 0
) -> Tensor:
    """Takes a quarter of the channels from the frame before and a quarter from the one after.

    Where there is no such frame they are zero: at both ends of a video, at images behind it, and
    everywhere in a video whose frames see only themselves.

    Args:
        x: `(rows, f + image_frames, c)`.
        focus_present_mask: Boolean `(rows,)`: where true, no frame sees another. None for nowhere.
        image_frames: How many frames at the end are images of their own.

    Example:
        >>> x = torch.arange(1.0, 4).view(1, 3, 1).expand(1, 3, 4)
        >>> shift_in_time(x)[0, :, 0].tolist(), shift_in_time(x)[0, :, 1].tolist()
        ([0.0, 1.0, 2.0], [2.0, 3.0, 0.0])
    """
    n, quarter = x.shape[1] - image_frames, x.shape[2] // 4
    before, after, kept = x.split((quarter, quarter, x.shape[2] - 2 * quarter), dim=-1)
    before = F.pad(before[:, : n - 1], (0, 0, 1, image_frames))
    after = F.pad(after[:, 1:n], (0, 0, 0, 1 + image_frames))
    moved = torch.cat((before, after), dim=-1)
    if focus_present_mask is not None:
        moved = moved.masked_fill(focus_present_mask.view(-1, 1, 1), 0)
    return torch.cat((moved, kept), dim=-1)


def shift_in_space(x: Tensor, mode: Padding = ZEROS) -> Tensor:
    """Takes an eighth of the channels each from the pixel above, below, on the left and right.

    Args:
        x: `(b, c, f, h, w)`.
        mode: What the pixels beyond the edges of a frame are, in height and in width.

    Example:
        >>> x = torch.arange(1.0, 5).view(1, 1, 1, 2, 2).expand(1, 8, 1, 2, 2)
        >>> shift_in_space(x)[0, 0, 0].tolist(), shift_in_space(x)[0, 3, 0].tolist()
        ([[0.0, 0.0], [1.0, 2.0]], [[2.0, 0.0], [4.0, 0.0]])
    """
    eighth = x.shape[1] // 8
    parts = x.movedim(1, -1).split((*[eighth] * 4, x.shape[1] - 4 * eighth), dim=-1)
    above, below, left, right, kept = parts
    tall, wide = mode
    above, below = _moved(above, 2, 1, tall), _moved(below, 2, -1, tall)
    left, right = _moved(left, 3, 1, wide), _moved(right, 3, -1, wide)
    return torch.cat((above, below, left, right, kept), dim=-1).movedim(-1, 1)


def _moved(x: Tensor, axis: int, step: int, mode: str) -> Tensor:
    """Moves pixels by one along an axis, to its end if `step` is 1, to its beginning if -1."""
    n = x.shape[axis]
    # the pixel beyond the first one; that beyond the last is its mirror image
    place = {"zeros": 0, "circular": n - 1, "replicate": 0, "reflect": 1}[mode]
    edge = x.narrow(axis, place if step > 0 else n - 1 - place, 1)
    if mode == "zeros":
        edge = torch.zeros_like(edge)
    kept = x.narrow(axis, 0 if step > 0 else 1, n - 1)
    return torch.cat((edge, kept) if step > 0 else (kept, edge), dim=axis)
