"""What `equality.py` does in processes of their own, so that no package meets another.

python -m benchmarks.equality_processes LOADER FOLDER TOKENS OUT          # write the logits of a reload
python -m benchmarks.equality_processes CASE MODEL TOKENS OUT GRID_POINTS # llm-compressor, sums begun as float64
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks import packages
from mvquant.backends.replaced import replaced
from mvquant.reference import reference_path


def main() -> None:
    """Load a folder and write its logits, or call a package with exact sums."""
    what, *arguments = sys.argv[1:]
    if what in LOADERS:
        folder, asked, out = map(Path, arguments)
        save_file({"logits": logits_of(LOADERS[what](folder), load_file(asked)["tokens"])}, out)
        return
    model, tokens, out = map(Path, arguments[:3])
    call_with_exact_sums(what, model, tokens, out, grid_points=int(arguments[3]))


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits `[sequences, length, vocabulary]`, in the model's dtype."""
    with torch.no_grad():
        return model.eval()(tokens).logits.contiguous()


def call_with_exact_sums(case: str, model: Path, tokens: Path, out: Path, grid_points: int) -> None:
    """Call the package with its float32 sums begun as float64, as mvquant has them."""
    from llmcompressor.modifiers.gptq import base
    from llmcompressor.modifiers.transform.awq import AWQModifier

    def hessian(module: nn.Module, device: torch.device | None = None) -> Tensor:
        columns = module.get_parameter("weight").shape[1]
        return torch.zeros(columns, columns, dtype=torch.float64, device=device)

    settings = {"grid_points": grid_points} if case == "llmcompressor-awq" else {}
    with replaced(base, make_empty_hessian=hessian), _exact_activations(AWQModifier):
        packages.PACKAGES[case](model, tokens, out, **settings)


def _exact_activations(awq: Any) -> AbstractContextManager[None]:  # noqa: ANN401 - its private methods are replaced
    """Begin AWQ's sums of activations as float64, and round them once they are complete."""
    begin, use = awq._setup_activation_cache_hooks, awq._apply_smoothing

    def begin_exactly(self: Any) -> None:  # noqa: ANN401
        for mapping in self._resolved_mappings:
            columns = mapping.balance_layers[0].weight.shape[1]
            start = [torch.zeros(columns, dtype=torch.float64), torch.tensor(0)]
            self._smooth_activation_stats[mapping.smooth_name] = start
        begin(self)

    def use_rounded(self: Any, model: nn.Module) -> None:  # noqa: ANN401
        sums = dict(self._smooth_activation_stats)
        seen = {name: [total.float(), count] for name, (total, count) in sums.items() if count}
        self._smooth_activation_stats.clear()
        self._smooth_activation_stats.update(seen)
        use(self, model)
        self._smooth_activation_stats.update({name: each for name, each in sums.items() if name not in seen})

    return replaced(awq, _setup_activation_cache_hooks=begin_exactly, _apply_smoothing=use_rounded)


def _by_gptqmodel(folder: Path) -> nn.Module:
    """GPTQModel's own loader, with the kernel that multiplies by dequantized weights."""
    from gptqmodel import GPTQModel
    from gptqmodel.utils.backend import BACKEND

    for file in reference_path().glob("tokenizer*"):  # it wants one, and AutoAWQ does not save it
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kernel = BACKEND.AWQ_TORCH if config["quantization_config"]["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    loaded: Any = GPTQModel.load(str(folder), device="cpu", dtype=getattr(torch, config["dtype"]), backend=kernel)
    return loaded.model


def _by_optimum(folder: Path) -> nn.Module:
    """The loader of transformers for GPTQ, which is optimum's, with the same kernel."""
    from transformers import GPTQConfig

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wanted = GPTQConfig(bits=config["quantization_config"]["bits"], backend="gptq_torch")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=wanted, local_files_only=True)


def _by_transformers(folder: Path) -> nn.Module:
    """The loader of transformers, with what AutoRound or compressed-tensors gives it."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


LOADERS: Mapping[str, Callable[[Path], nn.Module]] = {
    "gptqmodel": _by_gptqmodel,
    "optimum": _by_optimum,
    "transformers": _by_transformers,
}


if __name__ == "__main__":
    main()
