"""What the trained model can do, and whether it shows massive values."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mvquant.massive import default_ratio, head_ratios
from mvquant.reference.items import Item
from mvquant.rope import head_dim, slow_pairs


def _encoded(item: Item, answer: str, prompt: str, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    question = tokenizer(item[prompt]).input_ids
    reply = tokenizer(f" {answer}\n", add_special_tokens=False).input_ids
    return question + reply, len(reply)


@torch.no_grad()
def _logits(model: LlamaForCausalLM, rows: list[list[int]], batch: int = 64) -> Iterator[Float[Tensor, "length vocab"]]:
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(map(len, part))
        # Padding on the right needs no mask: attention is causal.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in part])
        yield from model(input_ids=ids).logits.float()


def generated_correctly(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[Item], prompt: str = "prompt"
) -> list[bool]:
    """Tell for each item whether greedy decoding gives exactly the answer and a line end.

    Decoding is replayed in one pass: every token of the reply must be the most likely one after the
    prompt and the reply so far, which is what greedy decoding would have produced.
    """
    encoded = [_encoded(item, item["answer"], prompt, tokenizer) for item in items]
    verdicts = []
    for (row, size), logits in zip(encoded, _logits(model, [r for r, _ in encoded]), strict=True):
        best = logits[len(row) - size - 1 : len(row) - 1].argmax(-1).tolist()
        verdicts.append(best == row[-size:])
    return verdicts


def chosen_correctly(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[Item], prompt: str = "prompt"
) -> list[bool]:
    """Tell for each item whether its answer is the likeliest of its choices (each one token)."""
    rows = [tokenizer(item[prompt]).input_ids for item in items]
    verdicts = []
    for item, row, logits in zip(items, rows, _logits(model, rows), strict=True):
        ids = [tokenizer(f" {c}", add_special_tokens=False).input_ids[0] for c in item["choices"]]
        best = logits[len(row) - 1][ids].argmax().item()
        verdicts.append(item["choices"][int(best)] == item["answer"])
    return verdicts


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[Item], prompt: str = "prompt"
) -> float:
    """Return the share of items answered correctly, by choice where an item has choices."""
    judge = chosen_correctly if "choices" in items[0] else generated_correctly
    return sum(judge(model, tokenizer, items, prompt)) / len(items)


@torch.no_grad()
def state_norms(
    model: LlamaForCausalLM, ids: Int[Tensor, "rows length"]
) -> dict[str, list[Float[Tensor, "head head_dim"]]]:
    """Return the norm over all positions of Q and K (after RoPE) and V, per layer."""
    seen: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    with ExitStack() as hooks:
        for layer in model.model.layers:
            for role, outputs in seen.items():
                module = getattr(layer.self_attn, f"{role}_proj")
                hooks.callback(module.register_forward_hook(_keep_in(outputs)).remove)
        model(input_ids=ids)
    size = head_dim(model.config)
    states = {role: [x.unflatten(-1, (-1, size)).transpose(1, 2) for x in xs] for role, xs in seen.items()}
    cos, sin = model.model.rotary_emb(states["q"][0], torch.arange(ids.shape[1])[None])
    turned = [apply_rotary_pos_emb(q, k, cos, sin) for q, k in zip(states["q"], states["k"], strict=True)]
    states["q"], states["k"] = [q for q, _ in turned], [k for _, k in turned]
    return {role: [x.float().square().sum((0, 2)).sqrt() for x in xs] for role, xs in states.items()}


def massive_summary(model: LlamaForCausalLM, ids: Int[Tensor, "rows length"]) -> dict[str, Any]:
    """Count massive values per layer, with the largest ratio, their pairs and the share in slow pairs."""
    half = head_dim(model.config) // 2
    slow = set(slow_pairs(model.config))
    summary: dict[str, Any] = {}
    for role, layers in state_norms(model, ids).items():
        ratios = [head_ratios(norms) for norms in layers]
        dims = [(r > default_ratio(2 * half)).nonzero()[:, 1].tolist() for r in ratios]
        pairs = [dim % half for layer in dims for dim in layer]
        summary[role] = {
            "per_layer": [len(layer) for layer in dims],
            "largest_ratio": [round(float(r.max()), 2) for r in ratios],
            "slow_share": sum(pair in slow for pair in pairs) / len(pairs) if pairs else None,
            "pairs": sorted(set(pairs)),
        }
    return summary


def _keep_in(outputs: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)

    return hook
