"""Controls that spend the bytes of protected rows in another way; those of a cache are in `cache_controls`.

random          as many rows, drawn at random
fast-pairs      as many rows, of the fastest pairs of each head
top-norm        as many rows, of the largest norm, RoPE ignored
smaller-groups  no protected rows; smaller groups instead, in as many modules as the bytes allow
whole-qk        whole modules of Q and K at the protected bits, as many as the bytes allow
whole-qk-all    all of Q and K at the protected bits, whatever it costs: more than the same bytes
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mvquant.plan import ModulePlan, Plan
from mvquant.recipe import PolicyName, Protect, Recipe

ROW_CONTROLS: tuple[PolicyName, ...] = ("random", "fast-pairs", "top-norm")

GROUP_SIZES = (128, 64, 32)
"""From few scales to many."""

Planner = Callable[[Recipe], Plan]


@dataclass(frozen=True)
class Control:
    """One way to spend the bytes."""

    kind: str
    summary: str
    plan: Plan


def equal_bytes_controls(plan: Plan, make: Planner, seed: int) -> Iterator[Control]:
    """Yield the controls of a plan that protects rows; nothing for one that protects none.

    Args:
        plan: of the variant.
        make: makes the plan of a recipe for the same model.
        seed: of random rows.
    """
    protect = plan.recipe.protect
    if protect.policy == "none" or not any(module.protected for module in plan.modules):
        return
    base = make(_without_protection(plan.recipe))
    budget = plan.bytes_after - base.bytes_after
    amount = {"pairs": protect.pairs, "bytes": budget if protect.pairs is None else None}
    for policy in ROW_CONTROLS:
        if policy != protect.policy:
            changed = protect.model_copy(update={"policy": policy, "seed": seed, **amount})
            made = make(plan.recipe.model_copy(update={"protect": changed}))
            yield Control(policy, f"control: as many rows, {_ROWS[policy]}", made)
    yield from _module_controls(plan, base, budget, make)


_ROWS: dict[PolicyName, str] = {
    "random": "random pairs",
    "fast-pairs": "fastest pairs",
    "top-norm": "largest norm, RoPE ignored",
}


def _module_controls(plan: Plan, base: Plan, budget: int, make: Planner) -> Iterator[Control]:
    first = [module.name for module in plan.modules if module.protected]
    finer = base
    for smaller in _smaller_groups(base, plan.recipe, make):
        finer = blend(finer, smaller, base.bytes_after + budget, first)
    if finer.hash != base.hash:
        yield Control("smaller-groups", "control: smaller groups instead of protected rows", finer)
    protect = Protect(policy="whole-module", scheme=plan.recipe.protect.scheme, roles=plan.recipe.protect.roles)
    whole = make(plan.recipe.model_copy(update={"protect": protect}))
    some = blend(base, whole, base.bytes_after + budget, first)
    bits = plan.recipe.protected_scheme.bits
    if some.hash not in (base.hash, whole.hash):
        yield Control("whole-qk", f"control: whole Q and K modules at {bits} bits while the bytes last", some)
    yield Control("whole-qk-all", f"control: all of Q and K at {bits} bits, whatever it costs", whole)


def _without_protection(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"protect": Protect(policy="none")})


def _smaller_groups(base: Plan, recipe: Recipe, make: Planner) -> Iterable[Plan]:
    if recipe.weights is None or recipe.weights.scheme.activations:  # whose integer products need one group a row
        return
    scheme = recipe.weights.scheme
    widths = {module.columns for module in base.modules}
    largest = scheme.group_size if scheme.group_size > 0 else max(widths) + 1
    for size in GROUP_SIZES:
        if size < largest and all(width % size == 0 for width in widths):
            weights = recipe.weights.model_copy(update={"scheme": scheme.model_copy(update={"group_size": size})})
            yield make(_without_protection(recipe).model_copy(update={"weights": weights}))


def blend(base: Plan, richer: Plan, limit: int, first: Sequence[str]) -> Plan:
    """Take each module's richer plan while the whole stays within `limit` bytes.

    Args:
        base: the plan to begin with.
        richer: a plan of the same modules that spends more on them.
        limit: bytes of all tensors.
        first: names of modules that come before the others.
    """
    left = limit - base.bytes_after
    taken = {module.name: module for module in base.modules}
    order = sorted(richer.modules, key=lambda module: module.name not in first)
    for module in order:
        cost = module.bytes_after(base.float_bits) - taken[module.name].bytes_after(base.float_bits)
        if 0 < cost <= left:
            taken[module.name] = module
            left -= cost
    modules: tuple[ModulePlan, ...] = tuple(taken[module.name] for module in base.modules)
    return richer.model_copy(update={"modules": modules})
