"""Methods: how the values of a planned module are chosen, and the modules that hold them."""

from mvquant.methods.apply import apply_plan, empty_module
from mvquant.methods.table import METHODS, quantize_module

__all__ = ["METHODS", "apply_plan", "empty_module", "quantize_module"]
