"""Loading an mvquant checkpoint with `AutoModelForCausalLM.from_pretrained`, saving and dequantizing it.

transformers imports its quantizers before its models, and this module with them: what needs models is
loaded at first use.
"""

import logging
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mvquant.checkpoint.native import GUARD, QUANT_METHOD, guard_name, quantization_config, read_quantization_config
from mvquant.errors import CheckpointError
from mvquant.lazy import LazyModule
from mvquant.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mvquant import arch, methods, quant
else:
    arch = LazyModule("mvquant.arch")
    methods = LazyModule("mvquant.methods")
    quant = LazyModule("mvquant.quant")

logger = logging.getLogger(__name__)

_IGNORED = "_keys_to_ignore_on_load_unexpected"
"""Where transformers looks for tensors that may be in a checkpoint and not in the model."""


class MvquantConfig(QuantizationConfigMixin):
    """`quantization_config` of a checkpoint: the plan, and nothing that could contradict it.

    Unknown keys are accepted, so that an old reader can open a newer file of the same format version.
    """

    def __init__(self, **fields: Any) -> None:  # noqa: ANN401 - whatever the file holds
        super().__init__(quant_method=QUANT_METHOD)  # pyright: ignore[reportArgumentType] - typed as their own enum
        self.plan: Plan = read_quantization_config(fields)

    def to_dict(self) -> dict[str, Any]:
        """Return what is written to `config.json`."""
        return quantization_config(self.plan)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the same: there are no defaults to leave out."""
        return self.to_dict()


class MvquantQuantizer(HfQuantizer):
    """Puts quantized modules where the plan says so before weights are loaded."""

    quantization_config: MvquantConfig

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **_: Any) -> "PreTrainedModel":  # noqa: ANN401
        plan = self.quantization_config.plan
        for module in plan.modules:
            if module.scheme.is_quantized:
                quant.replace_weight(model, module.name, methods.empty_module(module, model))
                # else GPT-2's attention would look for the weight, to initialize it
                vars(model.get_submodule(module.name.rpartition(".")[0]))["_is_hf_initialized"] = True
        if (guard := guard_name(plan)) is not None:
            ignored: set[str] = set(getattr(model, _IGNORED) or ())
            setattr(model, _IGNORED, ignored | {re.escape(guard) + "$"})
        return model

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **_: Any) -> "PreTrainedModel":  # noqa: ANN401
        """Refuse a checkpoint that lacks quantized tensors; transformers only warns, and computes with noise.

        If the plan speaks of a cache, `generate` uses it from here on.
        """
        lost = [
            f"{module.name}.{name}"
            for module in self.quantization_config.plan.modules
            if module.scheme.is_quantized
            for name, tensor in model.get_submodule(module.name).named_parameters()
            if not getattr(tensor, "_is_hf_initialized", False)
        ]
        if lost:
            raise CheckpointError(f"the checkpoint lacks {len(lost)} quantized tensors, {lost[0]} first: copy it again")
        if self.quantization_config.plan.cache is not None:
            methods.require_plan_fit(self.quantization_config.plan, arch.model_view(model.config))
            methods.generate_with_planned_cache(model)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any]) -> list[Any]:
        """Load tensors as they are: they were converted to transformers' present names when they were written."""
        del weight_conversions
        return []

    def get_state_dict_and_metadata(  # pyright: ignore[reportIncompatibleMethodOverride] - inferred as (None, {})
        self, model: "PreTrainedModel"
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return all tensors and the guard, for `save_pretrained`."""
        guard = guard_name(self.quantization_config.plan)
        return {**model.state_dict(), **({} if guard is None else {guard: GUARD})}, {}

    def _dequantize(self, model: "PreTrainedModel", dtype: torch.dtype | str | None = None) -> "PreTrainedModel":
        plan = self.quantization_config.plan
        if any(module.scheme.activations for module in plan.modules):
            logger.warning("the weights become plain, and activations are rounded no more: logits will differ")
        # `save_pretrained` leaves the dtype in the config as a string
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        for module in plan.modules:
            if module.scheme.is_quantized:
                quant.restore_weight(model, module.name, wanted)
        return model

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - inferred as None
        """Whether `save_pretrained` works: it does."""
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - inferred as None
        """Whether the weights can be trained: integers cannot."""
        return False


if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(QUANT_METHOD)(MvquantConfig)
    register_quantizer(QUANT_METHOD)(MvquantQuantizer)
