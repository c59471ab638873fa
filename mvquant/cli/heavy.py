"""Modules that import torch, loaded when first used: `mvquant recipes ls` need not wait for them."""

from typing import TYPE_CHECKING

from mvquant.lazy import lazy_module

if TYPE_CHECKING:
    from mvquant import evaluation, pipeline, report
else:
    evaluation = lazy_module("mvquant.evaluation")
    pipeline = lazy_module("mvquant.pipeline")
    report = lazy_module("mvquant.report")

__all__ = ["evaluation", "pipeline", "report"]
