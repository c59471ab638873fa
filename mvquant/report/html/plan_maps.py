"""The plan of each variant: which pairs of which layers are protected, and what becomes of every module."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mvquant.heads import Role
from mvquant.plan import ModulePlan, Plan, Protection
from mvquant.report.cache_table import cached_lines
from mvquant.report.html.material import Material
from mvquant.report.html.raster import data_address, ink
from mvquant.report.html.tables import Cell, Column, Table
from mvquant.report.html.words import NOTHING, number, points, size
from mvquant.report.plan_table import bits_of, folded_modules, protected_text, short_module
from mvquant.report.ranges import ranges

_INK = (0x3B, 0x8E, 0xD0)
"""A blue that stands out from white and from black."""


@dataclass(frozen=True)
class ProtectionMap:
    """Protected pairs, or dims, of one role.

    Attributes:
        role: Q or K.
        unit: pairs or dims.
        count: how many a head has.
        layers: one for each row.
        picture: a data address; full is protected in every head.
    """

    role: str
    unit: str
    count: int
    layers: tuple[int, ...]
    picture: str


@dataclass(frozen=True)
class PlanView:
    """One plan as a person looks at it."""

    name: str
    figures: str
    cache: tuple[str, ...]
    reasons: tuple[str, ...]
    maps: tuple[ProtectionMap, ...]
    modules: Table


def plan_views(material: Material) -> list[PlanView]:
    """Return the plan of every variant that has one, in their order."""
    return [_view(name, plan) for name, plan in (material.plans or {}).items()]


def _view(name: str, plan: Plan) -> PlanView:
    protected = sum(len(module.protected_rows) * module.columns for module in plan.modules)
    share = f", {points(protected / plan.weights)} % of the weights protected" if protected else ""
    bits = f"{number(plan.bits_per_weight, 3)} bits per weight, " if plan.modules else ""
    roles: tuple[Role, ...] = ("q", "k")
    return PlanView(
        name=name,
        figures=f"{bits}{size(plan.bytes_after)}{share}",
        cache=tuple(cached_lines(plan)),
        reasons=tuple(dict.fromkeys(module.reason for module in plan.modules if module.reason)),
        maps=tuple(found for role in roles if (found := _map(plan, role)) is not None),
        modules=_module_table(name, plan),
    )


def _map(plan: Plan, role: Role) -> ProtectionMap | None:
    rows = [
        (module.layer, protection)
        for module in plan.modules
        for protection in module.protected
        if protection.heads.role == role
    ]
    if not rows:
        return None
    by_pair = all(not protection.dims for _, protection in rows)
    width = max(protection.heads.pairs if by_pair else protection.heads.head_dim for _, protection in rows)
    return ProtectionMap(
        role=role.upper(),
        unit="pair" if by_pair else "dim",
        count=width,
        layers=tuple(layer for layer, _ in rows),
        picture=data_address([_shares(protection, width, by_pair=by_pair) for _, protection in rows], ink(*_INK)),
    )


def _shares(protection: Protection, width: int, *, by_pair: bool) -> list[float]:
    """In how many of its heads each pair, or dim, is protected, as a fraction."""
    heads = protection.heads
    if by_pair:
        units = [unit for chosen in protection.pairs.values() for unit in chosen]
    else:
        first = [heads.row(head, 0) for head in range(heads.heads)]
        units = [row - max(start for start in first if start <= row) for row in protection.rows]
    counts = Counter(units)
    return [counts[unit] / heads.heads for unit in range(width)]


_COLUMNS = (
    Column("module"),
    Column("layers", numeric=True),
    Column("shape", numeric=True),
    Column("scheme"),
    Column("protected rows", numeric=True),
    Column("bits", numeric=True),
)


def _module_table(name: str, plan: Plan) -> Table:
    rows = [_module_row(modules, plan.float_bits) for modules in folded_modules(plan.modules)]
    return Table(f"Modules of {name}", _COLUMNS, tuple(rows))


def _module_row(modules: Sequence[ModulePlan], float_bits: int) -> tuple[Cell, ...]:
    first, bits = modules[0], bits_of(modules, float_bits)
    return (
        Cell(short_module(first.name)),
        Cell(ranges([module.layer for module in modules]), first.layer),
        Cell("\N{MULTIPLICATION SIGN}".join(map(str, first.shape)), first.weights),
        Cell(first.scheme.name),
        Cell(protected_text(modules) if first.protected else NOTHING, len(first.protected_rows)),
        Cell(number(bits, 2), bits),
    )
