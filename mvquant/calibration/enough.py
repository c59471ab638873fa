"""Whether there are tokens enough to calibrate with."""

from collections.abc import Sequence

from jaxtyping import Int64
from torch import Tensor

from mvquant.plan import ModulePlan, Plan

HESSIAN_MARGIN = 2
"""Tokens per column below which a Hessian is known badly: of `n` tokens it has rank `n` at most."""


def few_tokens(plan: Plan, batches: Sequence[Int64[Tensor, "1 _"]]) -> list[str]:
    """Say, in sentences for a person, where a plan's method sees fewer tokens than it can work with.

    Experts see a part of the tokens only: what each saw is known after the run.
    """
    tokens = sum(batch.numel() for batch in batches)
    named = f"{len(batches)} calibration sequences have {tokens} tokens"
    advice = "use more or longer sequences"
    if plan.recipe.method.name == "rtn" or not plan.modules:
        return []
    coarsest = max(plan.modules, key=_group)
    if tokens < _group(coarsest):
        return [f"{named}, fewer than the {_group(coarsest)} columns of a group of {coarsest.name}: {advice}"]
    widest = max(plan.modules, key=lambda module: module.columns)
    if plan.recipe.method.name == "gptq" and tokens < HESSIAN_MARGIN * widest.columns:
        needed = f"{HESSIAN_MARGIN} for each of the {widest.columns} columns of {widest.name}"
        return [f"{named}, fewer than {needed}, whose Hessian GPTQ needs: {advice}"]
    return []


def _group(module: ModulePlan) -> int:
    """Columns of a group."""
    return module.columns if module.scheme.group_size == -1 else module.scheme.group_size
