"""A plan as a person reads it: at 80 columns, layers folded."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mvquant.plan import ModulePlan, Plan, Protection
from mvquant.report.cache_table import cache_part, cached_lines
from mvquant.report.ranges import ranges

_FEW_HEADS = 4
"""So many heads are printed one by one without being asked for."""


def format_plan(plan: Plan, *, every_head: bool = False) -> RenderableType:
    """Return the plan for the terminal.

    Args:
        plan: the plan.
        every_head: print the pairs of every head, however many there are.
    """
    parts: list[RenderableType] = [Text(f"Plan for {plan.model} ({plan.family}, {plan.dtype})", style="bold")]
    if plan.modules:
        parts.append(Padding(_module_table(plan), (1, 0)))
    if any(module.protected for module in plan.modules):
        parts.append(_protection_table(plan, every_head=every_head))
    if plan.fold or plan.cache is not None:
        parts.append(cache_part(plan, every_head=every_head))
    if why := _why(plan):
        parts.append(Padding(why, (1, 0)))
    parts.append(plan_summary(plan))
    return Group(*parts)


def plan_summary(plan: Plan) -> Text:
    """One line per figure: bits per weight, and bytes before and after."""
    return Text("\n".join([*_weight_lines(plan), *cached_lines(plan), f"plan {plan.hash[:12]}"]))


def _weight_lines(plan: Plan) -> Iterable[str]:
    if not plan.modules:
        yield f"{plan.float_bits} bits per weight: none is quantized; {_bytes(plan.bytes_after)} in all"
        return
    protected = sum(len(module.protected_rows) * module.columns for module in plan.modules)
    yield (
        f"{plan.bits_per_weight:.3f} bits per weight, scales, zero points and row indices included; "
        f"{protected / plan.weights:.1%} of the weights are protected"
    )
    yield f"{_bytes(plan.bytes_before)} -> {_bytes(plan.bytes_after)} in all, of which {_kept(plan)}"


def _kept(plan: Plan) -> str:
    kept = _bytes(plan.kept_parameters * plan.float_bits // 8)
    return f"{kept} stay {plan.dtype} (embeddings, norms, biases)"


def _module_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("module", overflow="fold")
    for header in ("layers", "shape", "scheme", "protected rows", "bits"):
        table.add_column(header, justify="right", no_wrap=True)
    for modules in folded_modules(plan.modules):
        first = modules[0]
        table.add_row(
            short_module(first.name),
            ranges([module.layer for module in modules]),
            "x".join(map(str, first.shape)),
            first.scheme.name,
            protected_text(modules),
            f"{bits_of(modules, plan.float_bits):.2f}",
        )
    return table


def folded_modules(modules: Iterable[ModulePlan]) -> list[list[ModulePlan]]:
    """Put modules together that differ in their layer, and in which rows they protect, only."""
    folds: dict[tuple[object, ...], list[ModulePlan]] = defaultdict(list)
    for module in modules:
        folds[short_module(module.name), module.shape, module.scheme, module.protected_scheme].append(module)
    return list(folds.values())


def short_module(name: str) -> str:
    """Leave out what is the same in every layer: `model.layers.3.self_attn.q_proj` -> `self_attn.q_proj`.

    >>> short_module("model.layers.3.self_attn.q_proj")
    'self_attn.q_proj'
    """
    return re.sub(r"^.*?\.\d+\.", "", name, count=1)


def protected_text(modules: Sequence[ModulePlan]) -> str:
    """How many rows of each module are protected, and in which scheme."""
    scheme = modules[0].protected_scheme
    if scheme is None:
        return "-"
    counts = sorted({len(module.protected_rows) for module in modules})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"{span} {scheme.name}"


def bits_of(modules: Sequence[ModulePlan], float_bits: int) -> float:
    """Bits per weight of these modules, everything counted."""
    return sum(m.bytes_after(float_bits) for m in modules) * 8 / sum(m.weights for m in modules)


def _protection_table(plan: Plan, *, every_head: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", justify="right")
    table.add_column("role")
    unit = "pairs" if any(p.pairs for m in plan.modules for p in m.protected) else "dims"
    table.add_column(f"protected {unit} (0 is the fastest)" if unit == "pairs" else "protected dims", overflow="fold")
    for module in plan.modules:
        for protection in module.protected:
            layer = str(module.layer)
            for line in _heads(protection, every_head=every_head):
                table.add_row(layer, protection.heads.role, line)
    return table


def _heads(protection: Protection, *, every_head: bool) -> Iterable[str]:
    units = protection.pairs or protection.dims
    if every_head or len(units) <= _FEW_HEADS:
        for head, numbers in units.items():
            yield f"head {head}: {ranges(numbers)}"
        return
    common: dict[int, int] = defaultdict(int)
    for numbers in units.values():
        for number in numbers:
            common[number] += 1
    often = sorted(sorted(common, key=lambda number: (-common[number], number))[:8])
    yield f"{len(units)} heads; most often {ranges(often)}; {len(common)} different"


def _why(plan: Plan) -> Text | None:
    reasons = dict.fromkeys(module.reason for module in plan.modules if module.reason)
    lines = [f"Why: {plan.recipe.protect.policy}: {reason}." for reason in reasons]
    if plan.training_context and any(module.protected for module in plan.modules):
        lines.append(f"A pair is slow if it turns once in {plan.training_context} tokens or more.")
    if plan.calibration:
        seen = plan.calibration
        lines.append(f"Measured on {seen.sequences} x {seen.length} tokens of {seen.source} (seed {seen.seed}).")
    return Text("\n".join(lines)) if lines else None


def _bytes(count: int) -> str:
    """Write bytes with three digits.

    >>> _bytes(1_234_567)
    '1.23 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
