"""The package llmcompressor, loaded without its log, and the few of its names that the adapters use."""

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from mvquant.backends.registry import require
from mvquant.backends.replaced import replaced
from mvquant.scheme import WeightScheme

_LOG_SWITCH = "LLM_COMPRESSOR_LOG_DISABLED"

_PINS_ALWAYS = "0.14."
"""Versions whose AWQ pins memory on machines without an accelerator too, where torch refuses to."""


def package(module: str) -> Any:  # noqa: ANN401 - a module of a package without types
    """Import a module of llmcompressor: no line on the terminal, no log file, no log handler of others removed.

    Raises:
        BackendError: the package is not installed.
    """
    require("llmcompressor")
    with _quietly():
        found = importlib.import_module(f"llmcompressor.{module}")
        _add_log_level()
        return found


@contextmanager
def _quietly() -> Generator[None]:
    """Imports of the package set up a log on stdout, unless this variable is set; those behind it warn and log."""
    before, disabled = os.environ.get(_LOG_SWITCH), logging.root.manager.disable
    os.environ[_LOG_SWITCH] = "true"
    logging.disable(max(disabled, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if before is None:
            del os.environ[_LOG_SWITCH]
        else:
            os.environ[_LOG_SWITCH] = before


def _add_log_level() -> None:
    """Add the log level that the package's own pipeline writes to, and forgets to add while its log is off."""
    from loguru import logger

    try:
        logger.level("METRIC")
    except ValueError:
        logger.level("METRIC", no=38)


def weight_arguments(scheme: WeightScheme, *, activation_order: bool = False) -> Any:  # noqa: ANN401
    """Say a scheme in compressed-tensors' words, `QuantizationArgs`.

    Args:
        scheme: of weights.
        activation_order: columns with the largest activations first; groups stay where they are (`static`).
    """
    with _quietly():
        from compressed_tensors.quantization import QuantizationArgs
    by_row = scheme.group_size == -1
    fields = {
        "num_bits": scheme.bits,
        "symmetric": scheme.symmetric,
        "strategy": "channel" if by_row else "group",
        "group_size": None if by_row else scheme.group_size,
        "actorder": "static" if activation_order else None,
    }
    return QuantizationArgs.model_validate(fields)


@contextmanager
def weight_scheme(linear: nn.Linear, scheme: WeightScheme) -> Generator[None]:
    """Let the package find on a linear what it puts there before it searches for scales."""
    with _quietly():
        from compressed_tensors.quantization import QuantizationScheme, QuantizationStatus
    shape = (linear.out_features, scheme.groups(linear.in_features))
    device = linear.weight.device
    attached = {
        "quantization_scheme": QuantizationScheme(targets=["Linear"], weights=weight_arguments(scheme)),
        "quantization_status": QuantizationStatus.INITIALIZED,
        "weight_scale": torch.ones(shape, dtype=linear.weight.dtype, device=device),
        "weight_zero_point": torch.zeros(shape, dtype=torch.int8, device=device),
    }
    for name, value in attached.items():
        setattr(linear, name, value)
    try:
        yield
    finally:
        for name in attached:
            delattr(linear, name)


@contextmanager
def unpinned() -> Generator[None]:
    """Let the package's cache leave its tensors where they are on a machine without an accelerator."""
    if torch.accelerator.is_available() or not version("llmcompressor").startswith(_PINS_ALWAYS):
        yield
        return
    with replaced(package("pipelines.cache").IntermediatesCache, pin_memory=_nothing):
        yield


def _nothing(*_args: object, **_kwargs: object) -> None:
    """Stand for a method that has nothing to do."""


def every_expert() -> contextlib.AbstractContextManager[None]:
    """Let every expert see every token, as the package does by default: none is left without calibration."""
    return package("modeling.moe.context").moe_calibration_context()
