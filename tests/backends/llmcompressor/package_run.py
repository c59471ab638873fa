"""llmcompressor itself, run on a whole tiny model as its users run it: the oracle of the adapters."""

import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mvquant.backends.llmcompressor.package import package, unpinned
from mvquant.plan import ModulePlan, Plan
from mvquant.quant import unpack
from mvquant.scheme import WeightScheme


def oneshot(
    model: PreTrainedModel, folder: Path, batches: list[Tensor], recipe: list, *, exact_sums: bool = True
) -> None:
    """Run the package on a copy of the model and save what it made below `folder`.

    Args:
        exact_sums: add up Hessians and activations in float64, as mvquant does; the package adds float32.
    """
    model.save_pretrained(folder / "plain")
    theirs = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=model.dtype, attn_implementation="eager")
    theirs.config.dtype = model.dtype  # a name, as it was read, which the package cannot take experts apart by
    data = DataLoader([_item(batch, model) for batch in batches], batch_size=1, shuffle=False)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # those of the package's own run
        stack.enter_context(unpinned())
        if exact_sums:
            stack.enter_context(mock.patch("llmcompressor.modifiers.gptq.base.make_empty_hessian", _float64_hessian))
            stack.enter_context(_exact_activation_sums(package("modifiers.transform.awq").AWQModifier))
        package("entrypoints").oneshot(
            model=theirs,
            processor=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]"))),
            dataset=data,
            recipe=recipe,
            num_calibration_samples=len(batches),
        )
        theirs.save_pretrained(folder / "theirs", save_compressed=True)


def config_groups(scheme: WeightScheme) -> dict:
    """Say a scheme as the package's recipes do."""
    by_row = scheme.group_size == -1
    weights = {
        "num_bits": scheme.bits,
        "symmetric": scheme.symmetric,
        "strategy": "channel" if by_row else "group",
        "group_size": None if by_row else scheme.group_size,
    }
    activations = {
        "token": {"num_bits": 8, "symmetric": True, "dynamic": True, "strategy": "token"},
        "tensor": {"num_bits": 8, "symmetric": True, "strategy": "tensor", "observer": "static_minmax"},
    }
    group = {"targets": ["Linear"], "weights": weights}
    if scheme.activations:
        group["input_activations"] = activations[scheme.activations]
    return {"group_0": group}


def _float64_hessian(module: torch.nn.Module, device: torch.device | None = None) -> Tensor:
    columns = module.weight.shape[1]
    return torch.zeros(columns, columns, dtype=torch.float64, device=device)


@contextmanager
def _exact_activation_sums(awq: type):
    """Start the package's float32 sums of activations as float64, and round them once they are complete."""
    set_up, apply = awq._setup_activation_cache_hooks, awq._apply_smoothing

    def seeded(self):
        for mapping in self._resolved_mappings:
            columns = mapping.balance_layers[0].weight.shape[1]
            self._smooth_activation_stats[mapping.smooth_name] = [
                torch.zeros(columns, dtype=torch.float64),
                torch.tensor(0),
            ]
        set_up(self)

    def rounded(self, model):
        every = dict(self._smooth_activation_stats)
        seen = {name: [total.float(), count] for name, (total, count) in every.items() if count}
        self._smooth_activation_stats.clear()
        self._smooth_activation_stats.update(seen)
        apply(self, model)
        self._smooth_activation_stats.update({name: sums for name, sums in every.items() if name not in seen})

    with (
        mock.patch.object(awq, "_setup_activation_cache_hooks", seeded),
        mock.patch.object(awq, "_apply_smoothing", rounded),
    ):
        yield


def reloaded(folder: Path) -> PreTrainedModel:
    """Open what the package saved with transformers."""
    return AutoModelForCausalLM.from_pretrained(folder / "theirs", attn_implementation="eager").eval()


def saved(folder: Path) -> dict[str, Tensor]:
    """Return the tensors on disk."""
    return {
        name: value for file in (folder / "theirs").glob("*.safetensors") for name, value in load_file(file).items()
    }


def saved_integers(folder: Path, plan: Plan) -> dict[str, Tensor]:
    """Return the integers on disk by planned module, experts flat."""
    tensors = saved(folder)
    found = {}
    for name, value in tensors.items():
        if name.endswith(".weight_packed"):
            module, columns = name.removesuffix(".weight_packed"), tensors[name.replace("packed", "shape")][1]
            found[_in_transformers(module)] = unpack(value, plan.modules[0].scheme.bits, int(columns))
        elif value.dtype == torch.int8 and name.endswith(".weight"):
            found[_in_transformers(name.removesuffix(".weight"))] = value
    return {module.name: _flat(module, found) for module in plan.modules}


def _flat(module: ModulePlan, found: dict[str, Tensor]) -> Tensor:
    if module.kind == "linear":
        return found[module.name]
    owner, _, leaf = module.name.rpartition(".")
    parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
    return torch.cat([found[f"{owner}.{expert}.{part}"] for expert in range(module.shape[0]) for part in parts])


_MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}

_TRACED_WITHOUT_MASK = ("mistral", "phi3", "mixtral", "qwen3_moe")


def _in_transformers(module: str) -> str:
    """Return the name in the model of a module on disk; checkpoints of Mixtral have other ones."""
    *path, leaf = module.replace(".block_sparse_moe.", ".mlp.").split(".")
    return ".".join([*path, _MIXTRAL.get(leaf, leaf)])


def _item(batch: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    """A sequence, and for some families its causal mask, ready to be added.

    When it traces Mistral, Phi-3 and their kin, the package loses the causal mask, whether it gets a plain mask or
    none: their tokens would see those that follow.
    """
    item = {"input_ids": batch[0]}
    if model.config.model_type in _TRACED_WITHOUT_MASK:
        length = batch.shape[1]
        mask = torch.full((length, length), torch.finfo(model.dtype).min, dtype=model.dtype)
        item["attention_mask"] = mask.triu(1)[None]
    return item
