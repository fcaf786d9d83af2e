"""Rows of a step as a tree of what they begin with alike: one system prompt, few-shot examples, the earlier turns of a session.

Each token that several rows share is in the tree once. Laid flat, a node's tokens are followed by those of all its descendants, so
that a token sees those before it whose node's subtree it is in (`distill.attention`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from distill.render import Example

WORTHWHILE = 16  #: tokens that a branching must save: each costs calls of its own in every layer


@dataclass(frozen=True)
class Label:
    """A token that a row's answer has next."""

    place: int  #: of the token before it: in its node, or in the flat order
    token: int
    row: int


@dataclass
class Node:
    """Tokens that some rows have in common; what they go on with are its children."""

    tokens: list[int]
    depth: int  #: position of the first token in its rows
    children: list["Node"] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    size: int = 0  #: tokens, its descendants' included

    def __post_init__(self) -> None:
        self.size = len(self.tokens) + sum(child.size for child in self.children)


@dataclass(frozen=True)
class Span:
    """A node in the flat order: its tokens are [begin, end), its descendants' [end, last)."""

    begin: int
    end: int
    last: int


@dataclass(frozen=True)
class Flat:
    """Nodes side by side with all below them, in the order in which a model is given them."""

    tokens: list[int]
    positions: list[int]  #: in its row, of each token
    spans: list[Span]
    labels: list[Label]


def grow(rows: Sequence[Example]) -> list[Node]:
    """The tree's roots. A row's last token is in it only as a label: nothing comes after it."""
    read = [(row.prompt + row.completion)[:-1] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: read[i])
    # A row with which another begins needs no place of its own: an earlier turn of a session, or the same row again.
    own = [i for i, after in zip(order, [*order[1:], None], strict=True) if after is None or not _begins(read[after], read[i])]
    paths: dict[int, list[Node]] = {i: [] for i in own}
    roots = _branch([(read[i], i) for i in own], 0, paths)
    host = own[-1] if own else 0
    for i in reversed(order):
        host = i if i in paths else host
        _label(paths[host], rows[i], i)
    return roots


def sessions(rows: Sequence[Example]) -> list[list[int]]:
    """The rows' numbers, those together that are turns of one session: a turn begins with the whole prompt of an earlier one.

    Sessions come in the order of their first rows, and so do the rows of each.
    """
    whole = [row.prompt + row.completion for row in rows]
    found: list[list[int]] = []
    top: list[int] = []  # the prompt that all of the last session's rows begin with
    for i in sorted(range(len(rows)), key=lambda i: whole[i]):
        if not (found and top and _begins(whole[i], top)):
            found.append([])
            top = rows[i].prompt
        found[-1].append(i)
    return sorted((sorted(numbers) for numbers in found), key=min)


def flatten(nodes: Sequence[Node], *, below: bool = True) -> Flat:
    """Nodes in the order of a walk in depth; without what is below them if so wished."""
    flat = Flat([], [], [], [])
    for node in nodes:
        _lay(node, flat, below)
    return flat


def _begins(sequence: list[int], beginning: list[int]) -> bool:
    return sequence[: len(beginning)] == beginning


def _branch(rows: list[tuple[list[int], int]], depth: int, paths: dict[int, list[Node]]) -> list[Node]:
    """The nodes of sorted rows that are alike up to `depth`; notes each row's way down, from its end to the root's."""
    nodes: list[Node] = []
    for group in _groups(rows, depth):
        first, last = group[0][0], group[-1][0]  # sorted: what these two share, all do
        end = _alike(first, last, depth)
        if len(group) == 1 or ((end - depth) * (len(group) - 1) < WORTHWHILE and _all_part(group, end)):
            found = [(Node(tokens[depth:], depth), [i]) for tokens, i in group]
        else:
            children = _branch(group, end, paths)
            found = [(Node(first[depth:end], depth, children), [i for _, i in group])]
        for node, members in found:
            nodes.append(node)
            for i in members:
                paths[i].append(node)
    return nodes


def _groups(rows: list[tuple[list[int], int]], depth: int) -> Iterator[list[tuple[list[int], int]]]:
    """Sorted rows by their token at `depth`. Rows that end there have nothing left."""
    group: list[tuple[list[int], int]] = []
    for row in rows:
        if len(row[0]) <= depth:
            continue
        if group and group[0][0][depth] != row[0][depth]:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _alike(first: list[int], last: list[int], depth: int) -> int:
    most = min(len(first), len(last))
    step = most - depth
    while step:  # compare slices, not tokens: most of a prompt is one long run
        if first[depth : depth + step] == last[depth : depth + step]:
            depth += step
            step = min(step, most - depth)
        else:
            step //= 2
    return depth


def _all_part(group: list[tuple[list[int], int]], depth: int) -> bool:
    """Whether no two rows go on alike for long enough to be worth a node."""
    neighbours = pairwise(tokens for tokens, _ in group)  # who share most
    return all(_alike(one, other, depth) - depth < WORTHWHILE for one, other in neighbours)


def _label(path: list[Node], row: Example, number: int) -> None:
    """`path`: the nodes that hold the row's tokens, the deepest first."""
    nodes = iter(path[::-1])
    node = next(nodes)
    for position, token in enumerate(row.completion, start=len(row.prompt) - 1):
        while position >= node.depth + len(node.tokens):
            node = next(nodes)
        node.labels.append(Label(position - node.depth, token, number))


def _lay(node: Node, flat: Flat, below: bool) -> None:
    begin = len(flat.tokens)
    flat.tokens.extend(node.tokens)
    flat.positions.extend(range(node.depth, node.depth + len(node.tokens)))
    flat.labels.extend(Label(begin + label.place, label.token, label.row) for label in node.labels)
    flat.spans.append(Span(begin, begin + len(node.tokens), begin + (node.size if below else len(node.tokens))))
    if below:
        for child in node.children:
            _lay(child, flat, below)
