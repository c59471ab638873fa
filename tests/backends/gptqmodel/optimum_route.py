"""Run in a process of its own: quantize by transformers' GPTQConfig and by optimum, and save the logits of both."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, GPTQConfig, PreTrainedTokenizerFast

SETTINGS = {"bits": 4, "group_size": 64, "desc_act": False, "act_group_aware": False}


def main():
    from optimum.gptq import GPTQQuantizer

    folder = Path(sys.argv[1])
    tokens = load_file(folder / "tokens.safetensors")
    texts = [" ".join(map(str, tokens[name][0].tolist())) for name in sorted(tokens)]
    words = Tokenizer(WordLevel({str(number): number for number in range(128)}, unk_token="0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")

    asked = load_file(folder / "asked.safetensors")["tokens"]
    config = GPTQConfig(**SETTINGS, sym=False, tokenizer=tokenizer, dataset=texts)
    load(folder / "model", config).save_pretrained(folder / "by transformers")
    reloaded = load(folder / "by transformers", GPTQConfig(bits=4, backend="gptq_torch"))
    quantizer = GPTQQuantizer(**SETTINGS, sym=True, dataset=texts)
    quantized = quantizer.quantize_model(load(folder / "model"), tokenizer)
    with torch.no_grad():
        logits = {"by transformers": reloaded(asked).logits, "by optimum": quantized(asked).logits}
    save_file({name: each.contiguous() for name, each in logits.items()}, folder / "theirs.safetensors")
    quantizer.save(quantized, str(folder / "by optimum"))


def load(folder, config=None):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, quantization_config=config, local_files_only=True
    ).eval()


if __name__ == "__main__":
    main()
