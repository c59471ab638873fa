"""What a plan folds and how it caches K and V, as a person reads it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mvquant.cache_plan import CachePlan, HeadKeys
from mvquant.plan import Plan
from mvquant.report.ranges import ranges

_FEW_HEADS = 4
"""So many heads are printed one by one without being asked for."""

_SHOWN_PAIRS = 8
"""Pairs that are named where heads are printed together."""


def cache_part(plan: Plan, *, every_head: bool = False) -> RenderableType:
    """Return what a plan folds and caches, layer by layer.

    Args:
        plan: the plan.
        every_head: print the bits of every head, however many there are.
    """
    parts: list[RenderableType] = []
    if plan.fold:
        parts.append(Text(_folded(plan.fold)))
    if plan.cache is not None:
        parts.append(Text("\n".join(_described(plan, plan.cache))))
        if any(width < 16 for layer in plan.cache.layers for head in layer.heads for width in head.bits):
            parts.append(Padding(_bit_table(plan.cache, every_head=every_head), (1, 0, 0, 0)))
    return Group(*parts)


def cached_lines(plan: Plan) -> Iterator[str]:
    """What the cache takes, in a line; nothing for a plan that does not speak of it."""
    bits = plan.cached_bits
    if bits is None:
        return
    context = f" at {plan.training_context} tokens" if plan.training_context else ""
    yield (
        f"{bits.average:.3f} bits per cached value{context} (K {bits.keys:.3f}, V {bits.values:.3f}), scales, tables "
        "and unrounded tokens included"
    )


def _folded(fold: Sequence[Sequence[Sequence[float]]]) -> str:
    scales = [scale for layer in fold for head in layer for scale in head]
    moved = sum(scale != 1 for scale in scales)
    return (
        f"Folded: K divided, and Q multiplied, by {min(scales):g} to {max(scales):g}; "
        f"{moved} of {len(scales)} pairs of K change"
    )


def _described(plan: Plan, cache: CachePlan) -> Iterator[str]:
    yield f"K cache: {cache.policy or 'bits'}; {cache.keys.name}"
    values = cache.values
    groups = "the whole head" if values.group_size == -1 else f"groups of {values.group_size}"
    yield f"V cache: {'as it is' if values.bits == 16 else f'{values.bits} bits, {groups}, per token'}"
    exact = [f"the first {cache.sinks} tokens"] if cache.sinks else []
    exact += [f"at least the newest {cache.window}"] if cache.window else []
    if exact:
        yield f"In full precision: {', '.join(exact)}"
    if plan.round_queries:
        yield "Queries are rounded too, with the bits of their KV head's pairs"


def _bit_table(cache: CachePlan, *, every_head: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", justify="right")
    table.add_column("average", justify="right", no_wrap=True)
    table.add_column("bits of K by pair (0 is the fastest)", overflow="fold")
    for layer in cache.layers:
        for heads, line in _lines(layer.heads, every_head=every_head):
            bits = [width for head in heads for width in head.bits]
            table.add_row(str(layer.layer), f"{sum(bits) / len(bits):.2f}", line)
    return table


def _lines(heads: Sequence[HeadKeys], *, every_head: bool) -> Iterable[tuple[Sequence[HeadKeys], str]]:
    if every_head or len(heads) <= _FEW_HEADS:
        for number, head in enumerate(heads):
            yield [head], f"head {number}: {_by_width(head.bits)}"
        return
    widths = [width for head in heads for width in head.bits]
    total = [sum(bits) for bits in zip(*(head.bits for head in heads), strict=True)]
    most = sorted(range(len(total)), key=lambda pair: (-total[pair], pair))[:_SHOWN_PAIRS]
    yield heads, f"{len(heads)} heads, {min(widths)} to {max(widths)} bits; most to {ranges(most)}"


def _by_width(bits: Sequence[int]) -> str:
    """Say which pairs have how many bits, most bits first.

    >>> _by_width((2, 2, 4, 1, 1, 1))
    '4: 2, 2: 0-1, 1: 3-5'
    """
    pairs: dict[int, list[int]] = defaultdict(list)
    for pair, width in enumerate(bits):
        pairs[width].append(pair)
    return ", ".join(f"{width}: {ranges(pairs[width])}" for width in sorted(pairs, reverse=True))
