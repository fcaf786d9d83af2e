"""One step's loss and gradients, with the prompt's shared beginning computed once.

A task's requests begin alike: one system prompt, then what differs. The keys and values of that beginning are the
same for every row, so they are computed once a step and all rows attend to them; the rows' gradients for them are
summed, and go back through the beginning once. It is the same mathematics as computing every row alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import eager_mask

from distill.render import Example

WORTHWHILE = 16  #: tokens; a shorter beginning is computed with its row
PLAIN_ATTENTION = frozenset({"llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})  #: model types
GROUPED = "stillroom_grouped"  #: the attention below, by the name that `attn_implementation` takes


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all prompts begin with, leaving at least one of its own to each. 0 for no examples."""
    if not examples:
        return 0
    first, last = min(e.prompt for e in examples), max(e.prompt for e in examples)  # these two differ first
    length = min(len(e.prompt) for e in examples) - 1
    return next((i for i in range(length) if first[i] != last[i]), length)


def loss_and_backward(model: PreTrainedModel, examples: Sequence[Example], *, prefix: int, token_budget: int) -> float:
    """Add the step's gradients to the parameters' `.grad`; return the mean loss of a completion token.

    `prefix`: how many first tokens of all prompts to compute once (`shared_prefix`; 0: none). `token_budget`: the most
    tokens, padding included, of rows computed together; a longer row is computed alone. The model must be in eval
    mode: nothing random in it.
    """
    total = sum(len(e.completion) for e in examples)
    shared = _forward_prefix(model, examples[0].prompt[:prefix]) if prefix else []
    # The graph is cut here: rows leave their gradients in these leaves.
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in shared]
    loss = 0.0
    for rows in _micro_batches(examples, prefix, token_budget):
        part = _forward_rows(model, rows, leaves, prefix) / total
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
    reached = [(tensor, leaf.grad) for tensor, leaf in zip(shared, leaves, strict=True) if leaf.grad is not None]
    if reached:
        torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])
    return loss


def can_share(model: PreTrainedModel) -> bool:
    """Whether the prefix can be cut off: every layer must keep the keys and values of all earlier tokens, and nothing else."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def can_group(model: PreTrainedModel) -> bool:
    """Whether `grouped_attention` is all of this model's attention: no cap on the scores, no sinks, no bias."""
    return model.config.model_type in PLAIN_ATTENTION


def _forward_prefix(model: PreTrainedModel, ids: list[int]) -> list[torch.Tensor]:
    """Keys and values of each layer, in turn, each (1, key heads, len(ids), head size)."""
    cache = DynamicCache(config=model.config)
    with _logits_at(model, torch.zeros(1, len(ids), dtype=torch.bool, device=model.device)):
        model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _forward_rows(model: PreTrainedModel, rows: Sequence[Example], leaves: list[torch.Tensor], prefix: int) -> torch.Tensor:
    """The rows' summed loss. Padded on the right, where causal attention cannot look: no padding mask."""
    own = [(row.prompt + row.completion)[prefix:] for row in rows]
    width = max(map(len, own)) - 1
    ids = torch.tensor([[*tokens[:-1], *[0] * (width + 1 - len(tokens))] for tokens in own], device=model.device)
    where = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        where[i, len(own[i]) - 1 - len(row.completion) : len(own[i]) - 1] = True
    targets = torch.tensor([token for row in rows for token in row.completion], device=model.device)
    positions = torch.arange(prefix, prefix + width, device=model.device)[None]
    with _logits_at(model, where):
        cache = _cache(model, leaves, len(rows))
        logits = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=bool(leaves)).logits
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def _cache(model: PreTrainedModel, leaves: list[torch.Tensor], rows: int) -> DynamicCache | None:
    """The prefix's keys and values, shown to each row without copying them."""
    if not leaves:
        return None
    cache = DynamicCache(config=model.config)
    for layer, keys, values in zip(cache.layers, leaves[::2], leaves[1::2], strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)
    return cache


@contextmanager
def _logits_at(model: PreTrainedModel, where: torch.Tensor) -> Iterator[None]:
    """Hand the model's head only the hidden states at `where` (rows, width): most of its cost is at tokens nobody asks about."""
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _head, args: (args[0][where],))
    try:
        yield
    finally:
        handle.remove()


def _micro_batches(examples: Sequence[Example], prefix: int, token_budget: int) -> Iterator[list[Example]]:
    """Rows of about the same length together, longest first, so that little is padding and memory peaks at once."""
    batch: list[Example] = []
    for example in sorted(examples, key=len, reverse=True):
        if batch and (len(batch[0]) - prefix) * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(example)
    yield batch


def grouped_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as two matrix products for each key head, its group of query heads folded together.

    query (rows, heads, width, size), key and value (rows, key heads, length, size), mask (rows or 1, 1, width, length)
    or None; gives (rows, width, heads, size). In bfloat16 on a CPU it takes a third of the time of torch's fused kernel.
    """
    rows, heads, width, size = query.shape
    groups, length = key.shape[1], key.shape[2]
    folded = (query * scaling).reshape(rows * groups, heads // groups * width, size)
    scores = torch.bmm(folded, key.reshape(rows * groups, length, size).transpose(1, 2))
    scores = scores.view(rows, groups, heads // groups, width, length)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None]
    weights = scores.softmax(-1).view(rows * groups, -1, length)
    out = torch.bmm(weights, value.reshape(rows * groups, length, size)).view(rows, heads, width, size)
    return out.transpose(1, 2), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
