"""Methods: how the values of a planned module are chosen, and the modules that hold them."""

from mvquant.methods.apply import apply_plan, empty_module, plan_factors, require_plan_fit
from mvquant.methods.cache import generate_with_planned_cache, own_plan, planned_cache
from mvquant.methods.table import METHODS, quantize_module

__all__ = [
    "METHODS",
    "apply_plan",
    "empty_module",
    "generate_with_planned_cache",
    "own_plan",
    "plan_factors",
    "planned_cache",
    "quantize_module",
    "require_plan_fit",
]
