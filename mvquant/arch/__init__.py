"""What a Hugging Face decoder looks like: heads, rows, weights, and where a checkpoint keeps them."""

from mvquant.arch.families import FAMILIES, Family
from mvquant.arch.sources import Source, checkpoint_sources, tied_on_disk, unexpected_tensors
from mvquant.arch.views import AttentionView, ModelView, WeightView, find_family, meta_model, model_view

__all__ = [
    "FAMILIES",
    "AttentionView",
    "Family",
    "ModelView",
    "Source",
    "WeightView",
    "checkpoint_sources",
    "find_family",
    "meta_model",
    "model_view",
    "tied_on_disk",
    "unexpected_tensors",
]
