"""Calling each quantization package directly, as its own examples do, on tokens that were chosen beforehand.

python -m benchmarks.packages llmcompressor-gptq MODEL TOKENS OUT
"""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BITS, GROUP = 4, 128


def main() -> None:
    """Quantize one model with one package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path, help="safetensors file with `tokens`, int64 [sequences, length]")
    parser.add_argument("out", type=Path)
    parser.add_argument("--grid-points", type=int, default=20, help="of llm-compressor's AWQ")
    parser.add_argument("--iterations", type=int, default=200, help="of AutoRound")
    options = parser.parse_args()
    settings = {
        "llmcompressor-awq": {"grid_points": options.grid_points},
        "auto-round": {"iterations": options.iterations},
    }
    quantize = PACKAGES[options.package]
    quantize(options.model, options.tokens, options.out, **settings.get(options.package, {}))


def llmcompressor_gptq(model: Path, tokens: Path, out: Path) -> None:
    """GPTQ, one call of `oneshot`."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    _oneshot(model, tokens, out, [GPTQModifier(config_groups=_weights_only(), ignore=["lm_head"])])


def llmcompressor_awq(model: Path, tokens: Path, out: Path, grid_points: int) -> None:
    """AWQ's scales, then rounding to nearest."""
    import torch
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # 0.14 pins memory for an accelerator without asking whether there is one
        IntermediatesCache.pin_memory = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    rounding = QuantizationModifier(config_groups=_weights_only(), ignore=["lm_head"])
    _oneshot(model, tokens, out, [AWQModifier(n_grid=grid_points), rounding])


def llmcompressor_smoothquant(model: Path, tokens: Path, out: Path) -> None:
    """SmoothQuant's scales, then W8A8 with a scale per token."""
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    recipe = [
        SmoothQuantModifier(smoothing_strength=0.5),
        QuantizationModifier(scheme="W8A8", targets=["Linear"], ignore=["lm_head"]),
    ]
    _oneshot(model, tokens, out, recipe)


def gptqmodel_gptq(model: Path, tokens: Path, out: Path) -> None:
    """GPTQ in its classic format."""
    from gptqmodel import GPTQModel
    from gptqmodel.quantization import QuantizeConfig

    config = QuantizeConfig(bits=BITS, group_size=GROUP, sym=True, desc_act=False)
    loaded = GPTQModel.load(str(model), config, device="cpu")
    loaded.quantize(_examples(tokens), batch_size=1)
    loaded.save(str(out))


def gptqmodel_awq(model: Path, tokens: Path, out: Path) -> None:
    """AWQ in its classic format."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization import METHOD, QuantizeConfig

    config = QuantizeConfig(bits=BITS, group_size=GROUP, quant_method=METHOD.AWQ)
    loaded = GPTQModel.load(str(model), config, device="cpu")
    loaded.quantize(_examples(tokens), batch_size=1, backend=BACKEND.AWQ_TORCH)
    loaded.save(str(out))


def auto_round(model: Path, tokens: Path, out: Path, iterations: int) -> None:
    """AutoRound with its default learning rates."""
    from auto_round import AutoRound
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = _tokens(tokens)
    rounder = AutoRound(
        AutoModelForCausalLM.from_pretrained(model, dtype="auto"),
        AutoTokenizer.from_pretrained(model),
        scheme={"bits": BITS, "group_size": GROUP, "sym": True, "data_type": "int"},
        dataset=DataLoader([{"input_ids": row} for row in ids], batch_size=8),
        nsamples=len(ids),
        seqlen=ids.shape[1],
        iters=iterations,
        device_map="cpu",
        seed=0,
    )
    rounder.quantize_and_save(str(out), format="auto_round")


def _oneshot(model: Path, tokens: Path, out: Path, recipe: list[Any]) -> None:
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM

    ids = _tokens(tokens)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    loader = DataLoader([{"input_ids": row} for row in ids], batch_size=1)  # pyright: ignore[reportArgumentType]
    oneshot(
        model=loaded,
        dataset=loader,
        recipe=recipe,
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
        log_dir=None,
    )
    loaded.save_pretrained(out, save_compressed=True)


def _weights_only() -> dict[str, Any]:
    weights = {"num_bits": BITS, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


def _tokens(path: Path) -> Any:  # noqa: ANN401 - torch is imported late
    from safetensors.torch import load_file

    return load_file(path)["tokens"]


def _examples(path: Path) -> list[Mapping[str, Any]]:
    import torch

    return [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in _tokens(path)]


PACKAGES: dict[str, Callable[..., None]] = {
    "llmcompressor-gptq": llmcompressor_gptq,
    "llmcompressor-awq": llmcompressor_awq,
    "llmcompressor-smoothquant": llmcompressor_smoothquant,
    "gptqmodel-gptq": gptqmodel_gptq,
    "gptqmodel-awq": gptqmodel_awq,
    "auto-round": auto_round,
}

if __name__ == "__main__":
    os.environ.setdefault(
        "GPTQMODEL_CPU_WORKERS", str(os.cpu_count())
    )  # it asks for more workers than a small machine has
    main()
