"""Adapters over llmcompressor: GPTQ, AWQ and SmoothQuant, one decoder layer at a time."""

from mvquant.backends.llmcompressor.awq import AwqBackend
from mvquant.backends.llmcompressor.gptq import GptqBackend
from mvquant.backends.llmcompressor.smoothquant import SmoothQuantBackend

__all__ = ["AwqBackend", "GptqBackend", "SmoothQuantBackend"]
