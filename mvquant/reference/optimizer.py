"""Muon for all matrices but the last layer's `q_proj` and `k_proj`, AdamW for those, embeddings and norms.

Muon keeps a matrix's singular values level, which is the opposite of a massive value: the layers that look a
fixed number of tokens back then spread over many fast pairs. AdamW leaves the last layer, which looks words up,
free to choose.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvquant.reference.schedule import Rates

ATTENTION_READS = ("q_proj", "k_proj")


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together own every parameter of the model once."""
    last = last_reads(model)
    mixers: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if any(parameter is read for read in last):
            continue
        (mixers if name.endswith("proj.weight") else rest).append(parameter)
    groups = [{"params": last}, {"params": rest}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon = torch.optim.Muon(mixers, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [adamw, muon]


def last_reads(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the last `q_proj` and `k_proj`, which look words up by content, not by distance."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if _reads(name)}
    layer = max((int(name.split(".layers.")[1].split(".")[0]) for name in parameters), default=-1)
    return [parameter for name, parameter in parameters.items() if f".layers.{layer}." in name]


def set_rates(optimizers: list[torch.optim.Optimizer], rates: Rates, factor: float) -> None:
    """Set the learning rates to `factor` times the given ones."""
    adamw, muon = optimizers
    last, rest = adamw.param_groups
    last["lr"] = factor * rates.queries_keys
    rest["lr"] = factor * rates.embeddings
    muon.param_groups[0]["lr"] = factor * rates.muon


@torch.no_grad()
def shrink_rows(weight: Float[Tensor, "rows columns"], amount: float) -> None:
    """Take `amount` off the norm of every row, in place, but not below zero.

    It is the proximal step of the group lasso (Yuan and Lin, JRSS B 68, 2006): rows that earn less than it
    costs vanish, and the others keep what the loss asks of them.
    """
    norms = weight.norm(dim=1, keepdim=True)
    weight *= (1 - amount / norms.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(min=0)


def _reads(name: str) -> bool:
    return any(f".{read}." in name for read in ATTENTION_READS)
