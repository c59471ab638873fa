"""What llm-compressor saved, and how many of its integers and scales are those of another run; for `equality.py`."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mvquant.methods import WeightResults
from mvquant.plan import ModulePlan, Plan
from mvquant.quant import Grid, RoundedWeight, mixed_state, unpack


class CompressedFolder:
    """What llm-compressor saved, as `WeightResults`. Integers are unpacked by compressed-tensors.

    Attributes:
        changed: full names of parameters that are not quantized.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plans = {module.name: module for module in plan.modules}
        files = sorted(folder.glob("*.safetensors"))
        self._tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        self.changed: Collection[str] = [name for name in self._tensors if name.rpartition(".")[0] not in self._plans]

    def parameter(self, name: str) -> Tensor:
        """Return one of `changed`."""
        return self._tensors[name]

    def state(self, module: str) -> dict[str, Tensor]:
        """Return a module's tensors as mvquant names them."""
        plan = self._plans[module]
        rounded = RoundedWeight(self._integers(plan), Grid(self._tensors[f"{module}.weight_scale"]))
        return mixed_state(rounded, plan.scheme, None, None, (), None)

    def _integers(self, plan: ModulePlan) -> Tensor:
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        if (packed := self._tensors.get(f"{plan.name}.weight_packed")) is None:
            return self._tensors[f"{plan.name}.weight"]
        return unpack_from_int32(packed, plan.scheme.bits, torch.Size(plan.shape))


def compared(plan: Plan, ours: WeightResults, theirs: WeightResults) -> dict[str, Any]:
    """Compare integers and scales over all modules, and over those of each decoder layer."""
    layers = [
        _counted([module for module in plan.modules if module.layer == layer], ours, theirs)
        for layer in sorted({module.layer for module in plan.modules})
    ]
    return {**_counted(plan.modules, ours, theirs), "by_layer": layers}


def _counted(modules: Sequence[ModulePlan], ours: WeightResults, theirs: WeightResults) -> dict[str, Any]:
    found = {"integers": 0, "equal_integers": 0, "largest_step": 0, "scales": 0, "equal_scales": 0}
    for module in modules:
        one, other = ours.state(module.name), theirs.state(module.name)
        integers = [unpack(each["weight_packed"], module.scheme.bits, module.columns).int() for each in (one, other)]
        steps, scales = (integers[0] - integers[1]).abs(), one["weight_scale"] == other["weight_scale"]
        found["integers"] += steps.numel()
        found["equal_integers"] += int((steps == 0).sum())
        found["largest_step"] = max(found["largest_step"], int(steps.max()))
        found["scales"] += scales.numel()
        found["equal_scales"] += int(scales.sum())
    shares = {f"share_of_equal_{kind}": found[f"equal_{kind}"] / found[kind] for kind in ("integers", "scales")}
    return found | shares
