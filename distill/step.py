"""One step's loss and gradients, each shared token computed once (`distill.tree`).

The loss is a sum over rows, each with a weight: the mean of the answers' tokens in supervised training, what DPO makes of pairs.
A tree larger than the token budget is computed in parts: a node's keys and values are kept, its subtrees are computed one after
the other and leave their gradients there, which then go back through the node once. It is the same mathematics as computing every
row alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from distill import attention, tree
from distill.attention import Layers
from distill.render import Example
from distill.tree import Flat, Node

#: Model types whose attention is softmax(q k / sqrt(size)) v and nothing else, and whose head is one matrix.
PLAIN = frozenset({"llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
HEAD_ROWS = 256  #: places whose logits are in memory at once


def can_share(model: PreTrainedModel) -> bool:
    """Whether this model's rows can be computed as a tree: plain attention that sees all earlier tokens, in every layer."""
    layers = DynamicCache(config=model.config).layers
    return model.config.model_type in PLAIN and all(type(layer) is DynamicLayer for layer in layers)


def backward(model: PreTrainedModel, rows: Sequence[Example], weights: Sequence[float], *, token_budget: int) -> list[float]:
    """Add the gradients of the rows' loss to the parameters' `.grad`; return the log-likelihood of each row's answer, in nats.

    The loss is the sum over rows of the weight times the negative log-likelihood. `token_budget`: the most tokens computed at once;
    a longer run of tokens without a branch is computed alone. The model must be in eval mode: nothing random in it.
    """
    learned = _Pass(model, rows, token_budget, weights)
    learned.run()
    return learned.likelihoods


def computed_tokens(model: PreTrainedModel, rows: Sequence[Example]) -> int:
    """How many tokens a step of these rows computes, apart from padding."""
    if model.config._attn_implementation == attention.NAME:
        return sum(node.size for node in tree.grow(rows))
    return sum(len(row) - 1 for row in rows)


@dataclass(frozen=True)
class Judged:
    """What the model thinks of a row's answer."""

    likelihood: float  #: in nats, the sum over its tokens
    exact: bool  #: each token is the likeliest after those before it: decoding greedily would give this answer


@torch.no_grad()
def judge(model: PreTrainedModel, rows: Sequence[Example], *, token_budget: int) -> list[Judged]:
    """Of each row, without gradients. `token_budget` as in `loss_and_backward`."""
    counted = _Pass(model, rows, token_budget, [0.0] * len(rows))
    counted.run()
    return [Judged(*found) for found in zip(counted.likelihoods, counted.exact, strict=True)]


@dataclass
class _Pass:
    """One way through the rows, with gradients where they are switched on."""

    model: PreTrainedModel
    rows: Sequence[Example]
    budget: int
    weights: Sequence[float]
    likelihoods: list[float] = field(init=False)
    exact: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.likelihoods = [0.0] * len(self.rows)
        self.exact = [True] * len(self.rows)

    def run(self) -> None:
        if self.model.config._attn_implementation == attention.NAME:
            self._below(tree.grow(self.rows), [])
        else:
            for part in _alike(range(len(self.rows)), self.rows, self.budget):
                self._padded(part)

    def _below(self, nodes: Sequence[Node], before: list[Layers]) -> None:
        for part in _parts(nodes, self.budget):
            if len(part) == 1 and part[0].size > self.budget and part[0].children:
                self._trunk(part[0], before)
            else:
                flat = tree.flatten(part)
                hidden, _ = self._forward(flat, before)
                self._back(*self._ask(hidden, flat))

    def _trunk(self, node: Node, before: list[Layers]) -> None:
        """A node alone, then what is below it. The graph is cut here: the subtrees leave their gradients in the leaves."""
        flat = tree.flatten([node], below=False)
        hidden, kept = self._forward(flat, before)
        leaves = [tuple(x.detach().requires_grad_(x.requires_grad) for x in layer) for layer in kept]
        asked, grads = self._ask(hidden, flat)
        self._below(node.children, [*before, leaves])
        reached = [
            (x, leaf.grad)
            for layer, cut in zip(kept, leaves, strict=True)
            for x, leaf in zip(layer, cut, strict=True)
            if leaf.grad is not None
        ]
        self._back([*asked, *(x for x, _ in reached)], [*grads, *(grad for _, grad in reached)])

    def _forward(self, flat: Flat, before: list[Layers]) -> tuple[torch.Tensor, Layers]:
        """The last hidden states, (tokens, width), and each layer's keys and values."""
        device = self.model.device
        plan = attention.plan(flat, device, before)
        body = getattr(self.model, self.model.base_model_prefix)
        ids, positions = (torch.tensor([each], device=device) for each in (flat.tokens, flat.positions))
        out = body(input_ids=ids, position_ids=positions, use_cache=False, tree=plan)
        return out.last_hidden_state[0], plan.kept

    def _ask(self, hidden: torch.Tensor, flat: Flat) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Note what the labels' likelihoods are. Returns hidden states and the loss's gradients for them; none without gradients.

        The head is asked at few places at once: its logits are the largest of all that is computed.
        """
        labels = sorted(flat.labels, key=lambda label: label.place)
        places = sorted({label.place for label in labels})
        head = self.model.get_output_embeddings()
        asked: list[torch.Tensor] = []
        grads: list[torch.Tensor] = []
        done = 0
        for start in range(0, len(places), HEAD_ROWS):
            here = places[start : start + HEAD_ROWS]
            number = {place: i for i, place in enumerate(here)}
            last = next((i for i in range(done, len(labels)) if labels[i].place > here[-1]), len(labels))
            mine, done = labels[done:last], last
            part = hidden[here]
            leaf = part.detach().requires_grad_(torch.is_grad_enabled())
            logs = functional.log_softmax(head(leaf).float(), -1)
            self._note(
                logs, [number[label.place] for label in mine], [label.token for label in mine], [label.row for label in mine]
            )
            if leaf.requires_grad:
                asked.append(part)
                assert leaf.grad is not None
                grads.append(leaf.grad)
        return asked, grads

    def _note(self, logs: torch.Tensor, places: Sequence[int], tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Add the log-likelihoods of `tokens` at `places` to those of their rows; send their gradients back.

        `logs`: (places, vocabulary).
        """
        found = logs[places, tokens]
        for row, each in zip(rows, found.tolist(), strict=True):
            self.likelihoods[row] += each
        if torch.is_grad_enabled():
            (-found * found.new_tensor([self.weights[row] for row in rows])).sum().backward()  # type: ignore[no-untyped-call]
            return
        for row, token, likeliest in zip(rows, tokens, logs.argmax(-1)[places].tolist(), strict=True):
            self.exact[row] &= token == likeliest

    def _back(self, tensors: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
        learned = [(x, grad) for x, grad in zip(tensors, grads, strict=True) if x.requires_grad]
        if learned:
            torch.autograd.backward([x for x, _ in learned], [grad for _, grad in learned])

    def _padded(self, part: Sequence[int]) -> None:
        """Rows side by side, whole, through the model's own attention. Padded on the right, where causal attention cannot look."""
        rows, device = [self.rows[i] for i in part], self.model.device
        width = max(map(len, rows)) - 1
        ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
        where = torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row) - 1] = torch.tensor((row.prompt + row.completion)[:-1])
            where[i, len(row.prompt) - 1 : len(row) - 1] = True
        targets = [token for row in rows for token in row.completion]
        with _logits_at(self.model, where):
            logits = self.model(input_ids=ids, use_cache=False).logits
        logs = functional.log_softmax(logits.float(), -1)
        self._note(logs, range(len(targets)), targets, [i for i in part for _ in self.rows[i].completion])


def _parts(nodes: Sequence[Node], budget: int) -> Iterator[list[Node]]:
    """Neighbours that fit into the budget together; one that does not fit by itself is alone."""
    part: list[Node] = []
    for node in nodes:
        if part and sum(each.size for each in part) + node.size > budget:
            yield part
            part = []
        part.append(node)
    if part:
        yield part


def _alike(numbers: Sequence[int], rows: Sequence[Example], budget: int) -> Iterator[list[int]]:
    """Rows of about the same length together, longest first, so that little is padding and memory peaks at once."""
    part: list[int] = []
    for i in sorted(numbers, key=lambda i: len(rows[i]), reverse=True):
        if part and len(rows[part[0]]) * (len(part) + 1) > budget:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


@contextmanager
def _logits_at(model: PreTrainedModel, where: torch.Tensor) -> Iterator[None]:
    """Hand the model's head only the hidden states at `where` (rows, width): most of its cost is at tokens nobody asks about."""
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _head, args: (args[0][where],))
    try:
        yield
    finally:
        handle.remove()
