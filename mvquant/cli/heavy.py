"""Modules that import torch, loaded when first used: `mvquant recipes ls` need not wait for them."""

from typing import TYPE_CHECKING

from mvquant.lazy import LazyModule

if TYPE_CHECKING:
    from mvquant import comparing, comparison, evaluation, pipeline, report
else:
    comparing = LazyModule("mvquant.comparing")
    comparison = LazyModule("mvquant.comparison")
    evaluation = LazyModule("mvquant.evaluation")
    pipeline = LazyModule("mvquant.pipeline")
    report = LazyModule("mvquant.report")

__all__ = ["comparing", "comparison", "evaluation", "pipeline", "report"]
