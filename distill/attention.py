"""Attention in a tree laid flat (`distill.tree`): each token sees the tokens of its own row, and no others.

A node's descendants follow it without a gap. So what a step needs is few blocks: of each node, itself, causally; and its tokens as
keys of all its descendants, wholly. A block's share of the softmax is told by its log-sum-exp, as in FlashAttention (Dao et al.
2022, arXiv 2205.14135, sections 3.1 and B.2): shares are merged, and the backward pass computes the probabilities again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from distill.tree import Flat, Span

NAME = "stillroom_tree"  #: as `attn_implementation` takes it
CHUNK = 256  #: tokens; a longer node is cut, so that little of its causal block is computed in vain
LARGEST = 1 << 22  #: scores of a head that are in memory at once

Layers = list[tuple[torch.Tensor, ...]]  #: keys and values of each layer, (1, key heads, tokens, size)


@dataclass(frozen=True)
class Full:
    """Queries [begin, end) see all keys [first, last)."""

    begin: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Causal:
    """Runs of about the same length, each causal in itself."""

    places: torch.Tensor  #: (runs, longest), in the flat order; a shorter run's last one again and again
    real: torch.Tensor  #: (runs, longest): not such a repetition
    hidden: torch.Tensor  #: (longest, longest): which keys a query does not see


@dataclass
class Plan:
    """What sees what, and where keys and values come from and go to; given to the model's forward as `tree=`."""

    full: list[Full]
    causal: list[Causal]
    ends: torch.Tensor  #: (tokens,) of each token, where its node's subtree ends
    before: Sequence[Layers] = ()  #: of earlier tokens, which all tokens see, in their order
    kept: Layers = field(default_factory=list)  #: the forward puts each layer's own here
    mask: Any = None  #: FlexAttention's, made once

    @property
    def offset(self) -> int:
        """How many earlier tokens there are."""
        return sum(layers[0][0].shape[2] for layers in self.before)


def plan(flat: Flat, device: torch.device, before: Sequence[Layers] = ()) -> Plan:
    """The blocks of a flat tree whose tokens all come after those of `before`."""
    offset = sum(layers[0][0].shape[2] for layers in before)
    full = _full(0, len(flat.tokens), 0, offset)
    runs: list[tuple[int, int]] = []
    ends = torch.empty(len(flat.tokens), dtype=torch.long)
    for span in flat.spans:
        ends[span.begin : span.end] = span.last
        full += _full(span.end, span.last, offset + span.begin, offset + span.end)
        runs += _cut(span, full, offset)
    return Plan(full, _batches(runs, device), ends.to(device), before)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    tree: Plan,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, tokens, size), key and value (1, key heads, tokens, size); gives (1, tokens, heads, size)."""
    assert attention_mask is None
    tree.kept.append((key, value))
    if tree.before:
        layer: Any = module.layer_idx
        key, value = (torch.cat(all_, 2) for all_ in zip(*(layers[layer] for layers in tree.before), (key, value), strict=True))
    if query.is_cuda:
        return _flex(query, key, value, scaling, tree), None
    out: torch.Tensor = _Blocks.apply(query, key, value, tree, scaling)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_args, **_kwargs: None)


def sees(tree: Plan) -> torch.Tensor:
    """(tokens, offset + tokens) of bool: which keys each token sees. What the blocks come to; for tests."""
    places = torch.arange(len(tree.ends), device=tree.ends.device)
    own = (places[None] <= places[:, None]) & (places[:, None] < tree.ends[None])
    return torch.cat([own.new_ones(len(places), tree.offset), own], 1)


class _Blocks(torch.autograd.Function):
    """The blocks one after the other, as matrix products; heads that share a key head are folded into its queries."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: Plan, scaling: float) -> torch.Tensor:
        k, v = key[0], value[0]
        q = (query * scaling).view(k.shape[0], -1, *query.shape[2:])  # (key heads, heads of each, tokens, size)
        out = torch.zeros(q.shape, dtype=torch.float32)
        lse = torch.full(q.shape[:-1], -math.inf)
        for causal in tree.causal:
            part, norm = _softmax(_runs(q, causal), _of(k, causal, tree), _of(v, causal, tree), causal.hidden)
            where = causal.places[causal.real]
            out[:, :, where] = part.transpose(1, 2)[:, :, causal.real].float()
            lse[:, :, where] = norm.transpose(1, 2)[:, :, causal.real]
        for block in tree.full:
            rows, keys = slice(block.begin, block.end), slice(block.first, block.last)
            part, norm = (x[:, 0] for x in _softmax(q[:, None, :, rows], k[:, None, keys], v[:, None, keys], None))
            before, both = lse[:, :, rows], torch.logaddexp(lse[:, :, rows], norm)
            out[:, :, rows] = out[:, :, rows] * (before - both).exp()[..., None] + part * (norm - both).exp()[..., None]
            lse[:, :, rows] = both
        whole = out.to(query.dtype)
        ctx.save_for_backward(q, k, v, whole, lse)
        ctx.tree, ctx.scaling = tree, scaling
        return whole.view(query.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        tree: Plan = ctx.tree
        grad = grad.reshape(q.shape)
        delta = (grad.float() * out).sum(-1)
        dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float32) for x in (q, k, v))
        for causal in tree.causal:
            at, norm = causal.places[causal.real], _runs(lse, causal).masked_fill(~causal.real[None, :, None], math.inf)
            given = _of(k, causal, tree), _of(v, causal, tree), _runs(grad, causal), norm, _runs(delta, causal), causal.hidden
            found = _gradients(_runs(q, causal), *given)
            dq[:, :, at] += found[0].transpose(1, 2)[:, :, causal.real]
            dk[:, at + tree.offset] += found[1][:, causal.real]
            dv[:, at + tree.offset] += found[2][:, causal.real]
        for block in tree.full:
            rows, keys = slice(block.begin, block.end), slice(block.first, block.last)
            queries = q[:, None, :, rows], k[:, None, keys], v[:, None, keys]
            found = _gradients(*queries, grad[:, None, :, rows], lse[:, None, :, rows], delta[:, None, :, rows], None)
            dq[:, :, rows] += found[0][:, 0]
            dk[:, keys] += found[1][:, 0]
            dv[:, keys] += found[2][:, 0]
        dq = dq.mul_(ctx.scaling).to(q.dtype).view(1, -1, *q.shape[2:])
        return dq, dk[None].to(k.dtype), dv[None].to(v.dtype), None, None


# The shapes below: q (key heads, runs, heads of each, queries, size), k and v (key heads, runs, keys, size).


def _softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The values' mean under the softmax, as q; and its log-sum-exp, as q without its size."""
    scores = _scores(q, k, hidden)
    most = scores.amax(-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights.to(v.dtype) @ v).float().div_(total)
    return out.view(q.shape), (most + total.log_()).view(q.shape[:-1])


def _gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    hidden: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of q (before its scaling), k and v, in their shapes."""
    weights = _scores(q, k, hidden).sub_(lse.flatten(2, 3)[..., None]).exp_()
    grads = grad.flatten(2, 3)
    dv = weights.to(v.dtype).mT @ grads
    scores = (grads @ v.mT).float().sub_(delta.flatten(2, 3)[..., None]).mul_(weights).to(k.dtype)
    return (scores @ k).view(q.shape), scores.mT @ q.flatten(2, 3), dv


def _scores(q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """(key heads, runs, heads of each x queries, keys) in float32."""
    scores = (q.flatten(2, 3) @ k.mT).float()
    if hidden is not None:
        scores.view(*q.shape[:4], -1).masked_fill_(hidden, -math.inf)
    return scores


def _runs(x: torch.Tensor, causal: Causal) -> torch.Tensor:
    """(key heads, heads of each, tokens, ...) at the places of each run: (key heads, runs, heads of each, longest, ...)."""
    return x[:, :, causal.places].transpose(1, 2)


def _of(x: torch.Tensor, causal: Causal, tree: Plan) -> torch.Tensor:
    """Keys or values of each run: (key heads, runs, longest, size)."""
    return x[:, causal.places + tree.offset]


def _full(begin: int, end: int, first: int, last: int) -> list[Full]:
    """One block in parts of which no one has more than LARGEST scores."""
    if begin == end or first == last:
        return []
    step = max(1, LARGEST // (last - first))
    return [Full(at, min(at + step, end), first, last) for at in range(begin, end, step)]


def _cut(span: Span, full: list[Full], offset: int) -> list[tuple[int, int]]:
    """The node in chunks that are each causal in itself; what a chunk sees of the node before it goes to `full`."""
    chunks = [(at, min(at + CHUNK, span.end)) for at in range(span.begin, span.end, CHUNK)]
    for begin, end in chunks[1:]:
        full += _full(begin, end, offset + span.begin, offset + begin)
    return chunks


def _batches(runs: Sequence[tuple[int, int]], device: torch.device) -> list[Causal]:
    """Runs [begin, end) of about the same length together."""
    batches: list[list[tuple[int, int]]] = []
    for run in sorted(runs, key=lambda run: run[0] - run[1]):
        length = run[1] - run[0]
        longest = batches[-1][0][1] - batches[-1][0][0] if batches else 0
        if not batches or longest > 1.25 * length + 8 or (len(batches[-1]) + 1) * longest**2 > LARGEST:
            batches.append([])
        batches[-1].append(run)
    return [_causal(batch, device) for batch in batches]


def _causal(runs: Sequence[tuple[int, int]], device: torch.device) -> Causal:
    begins, ends = torch.tensor(runs).T
    steps = torch.arange(int((ends - begins).max()))
    places = torch.minimum(begins[:, None] + steps, ends[:, None] - 1)
    real = steps < (ends - begins)[:, None]
    return Causal(places.to(device), real.to(device), (steps[:, None] < steps).to(device))


def block_mask(tree: Plan, queries: int, keys: int, device: torch.device) -> Any:
    """What sees what, as FlexAttention takes it."""
    from torch.nn.attention.flex_attention import create_block_mask

    offset, ends = tree.offset, tree.ends

    def seen(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = key - offset
        return (own < 0) | ((own <= query) & (query < ends[own.clamp(min=0)]))

    return create_block_mask(seen, None, None, queries, keys, device=str(device))


def _flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, tree: Plan) -> torch.Tensor:
    """The same by FlexAttention's kernels."""
    if tree.mask is None:
        tree.mask = block_mask(tree, query.shape[2], key.shape[2], query.device)
    out: torch.Tensor = _compiled_flex()(query, key, value, block_mask=tree.mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
