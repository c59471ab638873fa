"""Methods: how the values of a planned module are chosen, and the modules that hold them."""

from mvquant.methods.apply import apply_plan, empty_module, plan_factors, require_plan_fit, require_results
from mvquant.methods.cache import generate_with_planned_cache, own_plan, planned_cache
from mvquant.methods.results import WeightResults
from mvquant.methods.rtn import quantize

__all__ = [
    "WeightResults",
    "apply_plan",
    "empty_module",
    "generate_with_planned_cache",
    "own_plan",
    "plan_factors",
    "planned_cache",
    "quantize",
    "require_plan_fit",
    "require_results",
]
