"""A plan as a person reads it: at 80 columns, layers folded."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mvquant.plan import ModulePlan, Plan, Protection

_FEW_HEADS = 4
"""So many heads are printed one by one without being asked for."""


def format_plan(plan: Plan, *, every_head: bool = False) -> RenderableType:
    """Return the plan for the terminal.

    Args:
        plan: the plan.
        every_head: print the protected pairs of every head, however many there are.
    """
    parts: list[RenderableType] = [Text(f"Plan for {plan.model} ({plan.family}, {plan.dtype})", style="bold")]
    parts.append(Padding(_module_table(plan), (1, 0)))
    if any(module.protected for module in plan.modules):
        parts.append(_protection_table(plan, every_head=every_head))
        parts.append(Padding(_why(plan), (1, 0)))
    parts.append(plan_summary(plan))
    return Group(*parts)


def plan_summary(plan: Plan) -> Text:
    """One line per figure: bits per weight, and bytes before and after."""
    protected = sum(len(module.protected_rows) * module.columns for module in plan.modules)
    return Text(
        f"{plan.bits_per_weight:.3f} bits per weight, scales, zero points and row indices included; "
        f"{protected / plan.weights:.1%} of the weights are protected\n"
        f"{_bytes(plan.bytes_before)} -> {_bytes(plan.bytes_after)} in all, of which {_kept(plan)}\n"
        f"plan {plan.hash[:12]}"
    )


def _kept(plan: Plan) -> str:
    kept = _bytes(plan.kept_parameters * plan.float_bits // 8)
    return f"{kept} stay {plan.dtype} (embeddings, norms, biases)"


def _module_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("module", overflow="fold")
    for header in ("layers", "shape", "scheme", "protected rows", "bits"):
        table.add_column(header, justify="right", no_wrap=True)
    for modules in _folded(plan.modules):
        first = modules[0]
        table.add_row(
            _short(first.name),
            _ranges([module.layer for module in modules]),
            "x".join(map(str, first.shape)),
            first.scheme.name,
            _protected(modules),
            f"{_bits(modules, plan.float_bits):.2f}",
        )
    return table


def _folded(modules: Iterable[ModulePlan]) -> list[list[ModulePlan]]:
    """Put modules together that differ in their layer, and in which rows they protect, only."""
    folds: dict[tuple[object, ...], list[ModulePlan]] = defaultdict(list)
    for module in modules:
        folds[_short(module.name), module.shape, module.scheme, module.protected_scheme].append(module)
    return list(folds.values())


def _short(name: str) -> str:
    """Leave out what is the same in every layer: `model.layers.3.self_attn.q_proj` -> `self_attn.q_proj`.

    >>> _short("model.layers.3.self_attn.q_proj")
    'self_attn.q_proj'
    """
    return re.sub(r"^.*?\.\d+\.", "", name, count=1)


def _protected(modules: Sequence[ModulePlan]) -> str:
    scheme = modules[0].protected_scheme
    if scheme is None:
        return "-"
    counts = sorted({len(module.protected_rows) for module in modules})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"{span} {scheme.name}"


def _bits(modules: Sequence[ModulePlan], float_bits: int) -> float:
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
            yield f"head {head}: {_ranges(numbers)}"
        return
    common: dict[int, int] = defaultdict(int)
    for numbers in units.values():
        for number in numbers:
            common[number] += 1
    often = sorted(sorted(common, key=lambda number: (-common[number], number))[:8])
    yield f"{len(units)} heads; most often {_ranges(often)}; {len(common)} different"


def _why(plan: Plan) -> Text:
    reasons = dict.fromkeys(module.reason for module in plan.modules if module.reason)
    lines = [f"Why: {plan.recipe.protect.policy}: {reason}." for reason in reasons]
    if plan.training_context:
        lines.append(f"A pair is slow if it turns once in {plan.training_context} tokens or more.")
    if plan.calibration:
        seen = plan.calibration
        lines.append(f"Measured on {seen.sequences} x {seen.length} tokens of {seen.source} (seed {seen.seed}).")
    return Text("\n".join(lines))


def _ranges(numbers: Iterable[int]) -> str:
    """Write runs of numbers shortly.

    >>> _ranges([1, 2, 3, 7, 9, 10])
    '1-3 7 9-10'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _bytes(count: int) -> str:
    """Write bytes with three digits.

    >>> _bytes(1_234_567)
    '1.23 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
