"""Tables that a person can sort: every cell has its text, and numbers beside it where the text is not one."""

from collections.abc import Callable
from dataclasses import dataclass

from mvquant.comparison import ComparisonResults, VariantResult
from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.comparison_table import differing_keys, p_value
from mvquant.report.findings import spending
from mvquant.report.gains import JudgedGains, judged_gains
from mvquant.report.html.marks import SIGNS
from mvquant.report.html.material import Material
from mvquant.report.html.words import MINUS, NOTHING, limits, number, points, size, small
from mvquant.report.partial import is_partial, tasks_of


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is read.
        value: what is sorted by; the text where None.
        note: a second line, smaller.
        mark: `worse` or `better` where the difference is significant.
        flips: variant and task whose flips it leads to.
    """

    text: str
    value: int | float | None = None
    note: str = ""
    mark: str = ""
    flips: tuple[str, str] | None = None


@dataclass(frozen=True)
class Column:
    """A heading; `title` explains it, `group` stands above it."""

    name: str
    numeric: bool = False
    title: str = ""
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading. `kinds` are classes of the rows, where they differ."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    kinds: tuple[str, ...] = ()
    footer: tuple[Cell, ...] = ()

    @property
    def grouped(self) -> list[tuple[str, int]]:
        """Groups of neighbouring columns, and how many each has; empty where there are none."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans if any(column.group for column in self.columns) else []


def _estimate(estimate: Estimate | None, part: str = "", mark: str = "") -> Cell:
    if estimate is None:
        return Cell(NOTHING)
    note = f"{limits(estimate)}; {part}" if part else limits(estimate)
    return Cell(points(estimate.value), estimate.value, note, mark)


_Figure = Callable[[VariantResult], Cell]

_SIZE_COLUMNS: dict[Column, _Figure] = {
    Column("bits/weight", numeric=True, title="scales, zero points and row indices included"): lambda each: Cell(
        number(each.bits_per_weight, 2), each.bits_per_weight
    ),
    Column("on disk", numeric=True, title="all tensors"): lambda each: Cell(size(each.bytes), each.bytes),
}


def _score_columns(results: ComparisonResults) -> dict[Column, _Figure]:
    """What was kept and lost of each group, and of how many of its tasks where not all were answered."""

    def kept(group: Knowledge) -> _Figure:
        return lambda each: _estimate(
            each.groups[group].corrected if group in each.groups else None, tasks_of(each, results, group)
        )

    def lost(group: Knowledge) -> _Figure:
        return lambda each: _estimate(
            each.groups[group].drop if group in each.groups else None, tasks_of(each, results, group)
        )

    columns: dict[Column, _Figure] = {}
    for group, sign in SIGNS.items():
        columns[Column("kept", numeric=True, group=sign)] = kept(group)
        columns[Column("lost", numeric=True, group=sign)] = lost(group)
    gap = Column(f"lost, reading {MINUS} recall", numeric=True)
    columns[gap] = lambda each: _estimate(
        each.contextual_minus_parametric, "some tasks" if is_partial(each, results) else ""
    )
    return columns


_KEY_COLUMN = Column("bits/cached key", numeric=True, title="over the training context, everything counted")


def _key_bits(each: VariantResult) -> Cell:
    return Cell(number(each.bits_per_cached_key, 2), each.bits_per_cached_key)


def variant_table(material: Material) -> Table:
    """Size, what was kept and what was lost, of every model."""
    variants = material.results.variants
    cells = _SIZE_COLUMNS | _score_columns(material.results)
    if differing_keys(variants):
        first, *rest = cells.items()
        cells = dict([first, (_KEY_COLUMN, _key_bits), *rest])
    rows = [(Cell(each.name), *(cell(each) for cell in cells.values())) for each in variants]
    return Table(
        "Size, reading and recall", (Column("model"), *cells), tuple(rows), tuple(each.role for each in variants)
    )


def _ratio(each: VariantResult) -> Cell:
    ratio = each.text.perplexity_ratio if each.text else None
    if ratio is None:
        return Cell(NOTHING)
    return Cell(number(ratio.value, 3), ratio.value, f"{number(ratio.low, 3)} to {number(ratio.high, 3)}")


def _divergence(each: VariantResult) -> Cell:
    found = each.text.kl if each.text else None
    return (
        Cell(NOTHING)
        if found is None
        else Cell(small(found.value), found.value, f"{small(found.low)} to {small(found.high)}")
    )


def _tail(each: VariantResult) -> Cell:
    tail = each.text.kl_tail if each.text else None
    return Cell(small(tail), tail)


def _distinct(each: VariantResult) -> Cell:
    found = each.text.continuations.distinct_2 if each.text and each.text.continuations else None
    return Cell(number(found, 3), found)


def _length(each: VariantResult) -> Cell:
    found = each.text.continuations.mean_tokens if each.text and each.text.continuations else None
    return Cell(number(found, 1), found)


_TEXT_COLUMNS: dict[Column, Callable[[VariantResult], Cell]] = {
    Column("KL, nats", numeric=True, title="mean divergence of the next token from full precision"): _divergence,
    Column("KL tail", numeric=True, title="99.9 % quantile over tokens"): _tail,
    Column("same top token, %", numeric=True): lambda each: _estimate(each.text.top_1 if each.text else None),
    Column("perplexity ratio", numeric=True, title="over full precision, paired by sequence"): _ratio,
    Column("distinct-2", numeric=True, title="different pairs of tokens in continuations; 1 never repeats"): _distinct,
    Column("tokens", numeric=True, title="mean length of a continuation"): _length,
}


def text_table(material: Material) -> Table | None:
    """How far the models drift apart on running text; None where none was read."""
    variants = [each for each in material.results.variants if each.text is not None]
    rows = [(Cell(each.name), *(cell(each) for cell in _TEXT_COLUMNS.values())) for each in variants]
    if not rows:
        return None
    columns = (Column("model"), *_TEXT_COLUMNS)
    return Table("On the same running text", columns, tuple(rows), tuple(each.role for each in variants))


def contrast_table(results: ComparisonResults) -> Table | None:
    """What else the same bytes buy; None without controls."""
    rows = [_contrast(each, results) for each in judged_gains(results)]
    columns = (
        Column("variant"),
        Column("against"),
        Column("extra bytes", numeric=True, title="that the variant takes more than the control on disk"),
        Column("extra bits/key", numeric=True, title="that it takes more of a cached key"),
        *(
            Column(f"{sign} kept more", numeric=True, title="points; positive is in favour of the variant")
            for sign in SIGNS.values()
        ),
        Column("better / worse", numeric=True, title="items that only the variant, only the control got right"),
        *(
            Column(
                f"p, {sign}", numeric=True, title="of that gain, by its interval; Holm-adjusted over both of all rows"
            )
            for sign in SIGNS.values()
        ),
    )
    return Table("The same bytes, spent in another way", columns, tuple(rows)) if rows else None


def _contrast(found: JudgedGains, results: ComparisonResults) -> tuple[Cell, ...]:
    each = found.contrast
    spent = spending(each, results)
    return (
        Cell(each.variant),
        Cell(each.control, note=f"takes {spent} bytes" if spent else ""),
        Cell(number(each.extra_bytes, 0), each.extra_bytes),
        Cell(number(each.extra_cached_bits, 2), each.extra_cached_bits),
        *(_estimate(each.gains.get(group), mark=found.clear(group)) for group in SIGNS),
        Cell(f"{each.better} / {each.worse}", each.better - each.worse),
        *(_p_cell(found.p.get(group)) for group in SIGNS),
    )


def _p_cell(p: float | None) -> Cell:
    return Cell(NOTHING) if p is None else Cell(p_value(p), p)
