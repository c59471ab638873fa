"""What AWQ as AutoAWQ wrote it cannot do; GPTQModel took it over."""

from collections.abc import Iterator

from mvquant.method_settings import Awq
from mvquant.plan import Plan

GRID_POINTS = 20
ROWS = 64


def awq_mistakes(plan: Plan, method: Awq, who: str, way_out: str) -> Iterator[str]:
    """Yield what of a plan it cannot do.

    Args:
        plan: what to do.
        method: its method.
        who: what to call the package's AWQ in a sentence.
        way_out: what to use instead.
    """
    if method.grid_points != GRID_POINTS:
        yield f"grid_points {method.grid_points}: {who} tries {GRID_POINTS}; leave it out, or use {way_out}"
    if uneven := [module.name for module in plan.modules if module.rows % ROWS]:
        yield f"{uneven[0]}: {who} clips {ROWS} rows at a time; use {way_out}"
