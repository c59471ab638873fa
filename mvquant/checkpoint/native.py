"""What makes a folder an mvquant checkpoint: its `quantization_config`, and a guard against blind loaders.

config.json       quantization_config: {quant_method: mvquant, format_version, plan}
*.safetensors     <module>.weight_packed, .weight_scale, ... as in `mvquant.quant`; the rest as it was
plan.json         the plan again, to be read and edited; loading does not look at it
quantization_log.jsonl   of calibrated methods: what they were made with, then a line for each module

Where the plan quantizes the cache only, all weights are there as they were (or folded, which changes no logit): such a
folder loads without mvquant too, which then warns of an unknown quantization and caches keys and values as they come.
"""

from typing import Any

import torch
from pydantic import ValidationError

from mvquant.errors import CheckpointError
from mvquant.plan import Plan

QUANT_METHOD = "mvquant"
FORMAT_VERSION = 1
"""Of a checkpoint whose plan speaks of weights only, rounded to nearest."""

CACHE_FORMAT_VERSION = 2
"""Of one whose plan speaks of the cache or folds: readers of version 1 refuse it."""

METHOD_FORMAT_VERSION = 3
"""Of one whose plan rounds activations or names a method other than rounding to nearest: older readers refuse it."""

GUARD = torch.empty(0, dtype=torch.uint8)
"""Stored under the name of a weight that is not there: a loader that does not know mvquant, which would
fill the quantized modules with random numbers and only warn, stops at this tensor's shape instead."""


def guard_name(plan: Plan) -> str | None:
    """The tensor name that the guard takes: the missing weight of the first quantized module; None if none is."""
    first = next((module for module in plan.modules if module.scheme.is_quantized), None)
    if first is None:
        return None
    return f"{first.name}.weight" if first.kind == "linear" else first.name


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The value of `quantization_config` in `config.json`."""
    return {
        "quant_method": QUANT_METHOD,
        "format_version": _format_version(plan),
        "plan": plan.model_dump(mode="json", exclude_defaults=True),
    }


def read_quantization_config(config: dict[str, Any]) -> Plan:
    """Read the plan back.

    Raises:
        CheckpointError: a newer format, or a plan that was damaged.
    """
    version = config.get("format_version")
    if version not in (FORMAT_VERSION, CACHE_FORMAT_VERSION, METHOD_FORMAT_VERSION):
        raise CheckpointError(
            f"the checkpoint has format version {version!r}, this mvquant reads {FORMAT_VERSION} to "
            f"{METHOD_FORMAT_VERSION}: update mvquant"
        )
    try:
        plan = Plan.model_validate(config["plan"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"config.json: the plan in quantization_config is damaged ({error})") from None
    if _format_version(plan) > version:
        raise CheckpointError(
            f"config.json: the plan in quantization_config {_beyond(plan)}, which format version {version} does not: "
            "a plan that is edited is to be given to `mvquant quantize --plan` again"
        )
    return plan


def _format_version(plan: Plan) -> int:
    if plan.recipe.method.name != "rtn" or any(module.scheme.activations for module in plan.modules):
        return METHOD_FORMAT_VERSION
    return FORMAT_VERSION if plan.cache is None and not plan.fold else CACHE_FORMAT_VERSION


def _beyond(plan: Plan) -> str:
    """What a plan does that its format version does not say."""
    if plan.recipe.method.name != "rtn":
        return f"names the method {plan.recipe.method.name}"
    return "rounds activations" if _format_version(plan) == METHOD_FORMAT_VERSION else "folds or speaks of a cache"
