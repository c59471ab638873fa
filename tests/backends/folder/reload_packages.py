"""Run in a process of its own: load folders as the packages do themselves, and save the logits that they give."""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main():
    folder = Path(sys.argv[1])
    tokens = load_file(folder / "asked.safetensors")["tokens"]
    logits = {}
    for case, how, saved in json.loads((folder / "reload.json").read_text()):
        with torch.no_grad():
            logits[f"{case} {how}"] = LOADERS[how](Path(saved))(tokens).logits.contiguous()
    save_file(logits, folder / "reloaded.safetensors")


def by_gptqmodel(saved):
    from gptqmodel import GPTQModel
    from gptqmodel.utils.backend import BACKEND

    config = json.loads((saved / "config.json").read_text())
    for file in (saved.parent / "source").glob("tokenizer*"):  # autoawq does not save one
        shutil.copyfile(file, saved / file.name)
    kernel = BACKEND.AWQ_TORCH if config["quantization_config"]["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    dtype = getattr(torch, config["dtype"])
    return GPTQModel.load(str(saved), device="cpu", dtype=dtype, backend=kernel).model.eval()


def by_transformers(saved):
    from transformers import AutoModelForCausalLM

    config = json.loads((saved / "config.json").read_text())
    dtype = getattr(torch, config["dtype"])
    return AutoModelForCausalLM.from_pretrained(saved, dtype=dtype, local_files_only=True).eval()


def by_transformers_torch(saved):
    """With the kernel that multiplies by dequantized weights, as GPTQModel does."""
    from transformers import AutoModelForCausalLM, GPTQConfig

    config = json.loads((saved / "config.json").read_text())
    wanted = GPTQConfig(bits=config["quantization_config"]["bits"], backend="gptq_torch")
    dtype = getattr(torch, config["dtype"])
    return AutoModelForCausalLM.from_pretrained(
        saved, dtype=dtype, quantization_config=wanted, local_files_only=True
    ).eval()


LOADERS = {
    "gptqmodel": by_gptqmodel,
    "transformers": by_transformers,
    "transformers, torch kernel": by_transformers_torch,
}

if __name__ == "__main__":
    main()
