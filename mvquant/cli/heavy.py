"""Modules that import torch, loaded when first used: `mvquant recipes ls` need not wait for them."""

from typing import TYPE_CHECKING

from mvquant.lazy import LazyModule

if TYPE_CHECKING:
    from mvquant import evaluation, pipeline, report
else:
    evaluation = LazyModule("mvquant.evaluation")
    pipeline = LazyModule("mvquant.pipeline")
    report = LazyModule("mvquant.report")

__all__ = ["evaluation", "pipeline", "report"]
