"""What makes a folder an mvquant checkpoint: its `quantization_config`, and a guard against blind loaders.

config.json       quantization_config: {quant_method: mvquant, format_version, plan}
*.safetensors     <module>.weight_packed, .weight_scale, ... as in `mvquant.quant`; the rest as it was
"""

from typing import Any

import torch
from pydantic import ValidationError

from mvquant.errors import CheckpointError
from mvquant.plan import Plan

QUANT_METHOD = "mvquant"
FORMAT_VERSION = 1

GUARD = torch.empty(0, dtype=torch.uint8)
"""Stored under the name of a weight that is not there: a loader that does not know mvquant, which would
fill the quantized modules with random numbers and only warn, stops at this tensor's shape instead."""


def guard_name(plan: Plan) -> str:
    """The tensor name that the guard takes: the missing weight of the first quantized module."""
    first = next(module for module in plan.modules if module.scheme.is_quantized)
    return f"{first.name}.weight" if first.kind == "linear" else first.name


def quantization_config(plan: Plan) -> dict[str, Any]:
    """The value of `quantization_config` in `config.json`."""
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "plan": plan.model_dump(mode="json", exclude_defaults=True),
    }


def read_quantization_config(config: dict[str, Any]) -> Plan:
    """Read the plan back.

    Raises:
        CheckpointError: a newer format, or a plan that was damaged.
    """
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"the checkpoint has format version {version!r}, this mvquant reads {FORMAT_VERSION}: update mvquant"
        )
    try:
        return Plan.model_validate(config["plan"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"config.json: the plan in quantization_config is damaged ({error})") from None
