"""What a package saved, module by module, as the project's own quantized tensors."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mvquant.arch import ModelView
from mvquant.backends.folder.packed import awq_weight, gptq_weight, zeros_are_less_one
from mvquant.backends.folder.source import SourceWeights
from mvquant.backends.layer import ModuleRecord, RoundedModule
from mvquant.backends.nearest import rounded
from mvquant.errors import BackendError, CheckpointError
from mvquant.plan import ModulePlan, Plan
from mvquant.quant import mixed_state, round_to_nearest
from mvquant.quant.rounded import RoundedWeight

logger = logging.getLogger(__name__)

PACKED = ("qweight", "qzeros", "scales", "g_idx")


class PackedFolder:
    """The safetensors of a folder in a classic layout, read tensor by tensor.

    Attributes:
        names: of all tensors.
        method: `gptq` or `awq`: the layout.

    Raises:
        BackendError: there are none, or the folder says nothing of its layout.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as handle:
                self._files |= dict.fromkeys(handle.keys(), file)
        if not self._files:
            raise BackendError(f"{folder}: the package has saved no safetensors there")
        self.names = frozenset(self._files)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.method: str = layout(config.get("quantization_config") or {})
        if self.method not in ("gptq", "awq"):
            raise BackendError(f"{folder}: layout {self.method!r} is neither gptq nor awq")

    def read(self, name: str) -> Tensor:
        """Read a tensor."""
        with safe_open(self._files[name], framework="pt") as handle:
            return handle.get_tensor(name).clone()

    def module(self, name: str) -> dict[str, Tensor]:
        """Read the packed tensors of a module by their local names.

        Raises:
            BackendError: the package left it as floats.
        """
        if f"{name}.qweight" not in self.names:
            raise BackendError(f"{name}: the package has not quantized it")
        return {part: self.read(f"{name}.{part}") for part in PACKED if f"{name}.{part}" in self.names}


def layout(config: Mapping[str, object]) -> str:
    """Tell how a checkpoint is packed from its quantization config.

    >>> layout({"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"})
    'awq'
    """
    named = str(config.get("quant_method", ""))
    if named == "auto-round":
        return "awq" if str(config.get("packing_format", "")).endswith("awq") else "gptq"
    return named


class FolderResults:
    """The weights that a package made, and the parameters that it changed (`mvquant.methods.WeightResults`).

    Attributes:
        changed: full names of parameters that are not quantized and have new values.
        records: what the package says of every module.
        log: what it printed.
    """

    def __init__(
        self,
        folder: Path,
        weights: SourceWeights,
        view: ModelView,
        plan: Plan,
        *,
        seen: Path | None = None,
        apart: Sequence[ModulePlan] = (),
        records: tuple[ModuleRecord, ...] = (),
        log: Path | None = None,
    ) -> None:
        self._packed = PackedFolder(folder)
        self._weights = weights
        self._plans = {module.name: module for module in plan.modules if module.scheme.is_quantized}
        self._stored_as = {weight.name: weight for weight in view.weights}
        self._dtype: torch.dtype = getattr(torch, plan.dtype)
        self._seen = seen if seen is not None and seen.is_file() else None
        self._less_one: bool | None = None
        self._apart = {module.name: module for module in apart}
        self.records, self.log = tuple(map(self._record, records)), log
        self.changed = frozenset(name for name in self._candidates(view) if self._differs(name))

    def parameter(self, name: str) -> Tensor:
        """Return the new value of one of `changed`."""
        return self._packed.read(name).to(self._dtype)

    def state(self, module: str) -> dict[str, Tensor]:
        """Return a quantized module's tensors by local name; see `mvquant.quant.state`."""
        plan, made = self._plans[module], self.module(module)
        return mixed_state(
            made.base, plan.scheme, made.kept, plan.protected_scheme, plan.protected_rows, made.input_scale
        )

    def module(self, name: str) -> RoundedModule:
        """Return a module as the package rounded it, and its rows in the protected scheme."""
        plan = self._plans[name]
        if name in self._apart:
            return rounded(plan, self._weight_seen(plan))
        try:
            base = self._base(plan)
        except (CheckpointError, KeyError, SafetensorError) as error:
            raise BackendError(f"{name}: what the package saved cannot be read ({error})") from None
        if base.integers.shape != (plan.rows, plan.columns):
            raise BackendError(f"{name}: the package has {tuple(base.integers.shape)} weights, not {plan.shape}")
        if plan.protected_scheme is None:
            return RoundedModule(base)
        weight = self._weight_seen(plan)
        quantized = plan.protected_scheme.is_quantized
        return RoundedModule(base, round_to_nearest(weight, plan.protected_scheme) if quantized else weight)

    def _record(self, record: ModuleRecord) -> ModuleRecord:
        """What there is to say of a module; what the package says of those that it rounded in vain is of no use."""
        if record.module not in self._apart:
            return record
        note = f"rounded to nearest in {self._apart[record.module].scheme.name}: the package has one scheme for all"
        return ModuleRecord(module=record.module, seconds=record.seconds, tokens=record.tokens, note=note)

    def _base(self, plan: ModulePlan) -> RoundedWeight:
        tensors = self._packed.module(plan.name)
        if self._packed.method == "awq":
            return awq_weight(tensors, plan.scheme, self._dtype)
        if self._less_one is None:
            self._less_one = zeros_are_less_one(tensors, plan.scheme, self._source_weight(plan))
        return gptq_weight(tensors, plan.scheme, self._dtype, self._less_one)

    def _weight_seen(self, plan: ModulePlan) -> Float[Tensor, "rows columns"]:
        """The weight, its protected rows as the package would have rounded them."""
        weight = self._source_weight(plan)
        if self._seen is not None:
            with safe_open(self._seen, framework="pt") as handle:
                if plan.name in handle.keys():  # noqa: SIM118 - a handle is not a mapping
                    rows = range(plan.rows) if plan.name in self._apart else plan.protected_rows
                    weight[list(rows)] = handle.get_tensor(plan.name).to(self._dtype)
        return weight

    def _source_weight(self, plan: ModulePlan) -> Float[Tensor, "rows columns"]:
        view = self._stored_as[plan.name]
        weight = self._weights.read(view.parameter)
        return weight.T.contiguous() if view.transposed else weight

    def _candidates(self, view: ModelView) -> list[str]:
        """Parameters that the package saved as floats."""
        return [name for name in view.parameters if name in self._packed.names]

    def _differs(self, name: str) -> bool:
        """Whether a parameter is another than before, but for the dtype that it was saved in."""
        saved, before = self._packed.read(name), self._weights.read(name)
        return not torch.equal(saved, before.to(saved.dtype))
