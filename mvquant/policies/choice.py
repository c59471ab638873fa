"""Choosing rows under a budget: candidates in order of a policy's wish, taken while they fit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mvquant import scores
from mvquant.recipe import PolicyName
from mvquant.scores import Heads


@dataclass(frozen=True)
class Policy:
    """A way to choose rows.

    `scope` says who competes for the budget: the units of each head among themselves, so that every
    head gets its share, or all units of the model.
    """

    score: Callable[[Heads, torch.Generator], Float[Tensor, "head unit"]]
    unit: Literal["pair", "dim"]
    scope: Literal["head", "model"]
    reason: str


POLICIES: dict[PolicyName, Policy] = {
    "massive": Policy(
        lambda heads, _: scores.massive(heads), "pair", "head", "most energy of its head, slow pairs first"
    ),
    "sensitivity": Policy(
        lambda heads, _: scores.sensitivity(heads),
        "pair",
        "model",
        "most logit error if rounded: Q energy x K variance",
    ),
    "slow-pairs": Policy(
        lambda heads, _: scores.slow_first(heads), "pair", "head", "wavelength from the training context upwards"
    ),
    "random": Policy(scores.shuffled, "pair", "head", "control: random pairs"),
    "fast-pairs": Policy(lambda heads, _: scores.fast_first(heads), "pair", "head", "control: fastest pairs"),
    "top-norm": Policy(lambda heads, _: scores.top_norm(heads), "dim", "head", "control: largest norm, RoPE ignored"),
    "whole-module": Policy(lambda heads, _: scores.every_dim(heads), "dim", "head", "control: all of Q and K"),
}
"""One line per policy; `none` chooses nothing and needs none."""


@dataclass(frozen=True)
class Candidate:
    """A pair or dim of one head that may be protected."""

    heads: int
    """Index of its `Heads` in the list that was ranked."""
    head: int
    unit: int
    rows: int
    columns: int


def ranked(policy: Policy, groups: Sequence[Heads], columns: Sequence[int], seed: int) -> list[Candidate]:
    """List every unit of every head, most wanted first; equal wishes in order of depth.

    Args:
        policy: whose wish.
        groups: the roles of all layers.
        columns: columns of the module that holds each of them.
        seed: for policies that draw.
    """
    generator = torch.Generator().manual_seed(seed)
    wishes = [
        (wish, Candidate(index, head, unit, rows=2 if policy.unit == "pair" else 1, columns=columns[index]))
        for index, heads in enumerate(groups)
        for head, unit, wish in _wishes(policy, heads, generator)
    ]
    return [candidate for _, candidate in sorted(wishes, key=lambda wish: wish[0])]


def _wishes(policy: Policy, heads: Heads, generator: torch.Generator) -> Iterator[tuple[int, int, float]]:
    """Yield (head, unit, wish), smaller wishes first: the rank in its head, or minus the score."""
    values = policy.score(heads, generator)
    order = values.argsort(dim=-1, descending=True, stable=True)
    for head, units in enumerate(order.tolist()):
        for rank, unit in enumerate(units):
            yield head, unit, float(rank) if policy.scope == "head" else -float(values[head, unit])


def within(budget: float, costs: Iterable[tuple[Candidate, float]]) -> list[Candidate]:
    """Take candidates from the front while their costs sum to no more than `budget`."""
    taken: list[Candidate] = []
    for candidate, cost in costs:
        budget -= cost
        if budget < 0:
            break
        taken.append(candidate)
    return taken
