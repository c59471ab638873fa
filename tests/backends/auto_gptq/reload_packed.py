"""Run by auto-gptq's own Python: load what it saved with its own loader; save logits of some tokens beside it."""

import sys

import torch
from safetensors.torch import load_file, save_file


def main():
    from auto_gptq import AutoGPTQForCausalLM

    tokens, *folders = sys.argv[1:]
    for folder in folders:
        model = AutoGPTQForCausalLM.from_quantized(
            folder,
            device="cpu",
            torch_dtype=torch.float32,
            use_safetensors=True,
            disable_exllama=True,
            disable_exllamav2=True,
            inject_fused_attention=False,
            inject_fused_mlp=False,
        )
        with torch.inference_mode():
            logits = model(load_file(tokens)["tokens"]).logits.float().contiguous()
        save_file({"logits": logits}, f"{folder}/logits-of-reload")


if __name__ == "__main__":
    main()
