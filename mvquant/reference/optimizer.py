"""Muon for the matrices that only mix features, AdamW for the rest, queries and keys included.

Muon keeps a matrix's singular values level, which is the opposite of a massive value; `q_proj` and
`k_proj` are therefore left to AdamW, as in ordinary language models, like the embeddings and norms.
"""

import torch
from torch import nn

from mvquant.reference.schedule import Rates

ATTENTION_READS = ("q_proj", "k_proj")
MUON_DECAY = 0.1


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together own every parameter of the model once."""
    mixers: list[nn.Parameter] = []
    reads: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if any(f".{read}." in name for read in ATTENTION_READS):
            reads.append(parameter)
        elif name.endswith("proj.weight"):
            mixers.append(parameter)
        else:
            rest.append(parameter)
    adamw = torch.optim.AdamW([{"params": reads}, {"params": rest}], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon = torch.optim.Muon(mixers, weight_decay=MUON_DECAY, adjust_lr_fn="match_rms_adamw")
    return [adamw, muon]


def set_rates(optimizers: list[torch.optim.Optimizer], rates: Rates, factor: float) -> None:
    """Set the learning rates to `factor` times the given ones, and the weight decay of `q_proj` and `k_proj`."""
    adamw, muon = optimizers
    reads, rest = adamw.param_groups
    reads["lr"] = factor * rates.queries_keys
    reads["weight_decay"] = rates.queries_keys_decay
    rest["lr"] = factor * rates.embeddings
    muon.param_groups[0]["lr"] = factor * rates.muon
