"""What the log says of each weight."""

from mvquant.backends.layer import ModuleRecord
from mvquant.backends.llmcompressor.linears import LayerLinears
from mvquant.plan import ModulePlan

FEW_TOKENS = 128
"""Experts to which the router sent fewer tokens are named, all of them: the terminal shortens long lists itself."""


def record(
    plan: ModulePlan,
    linears: LayerLinears,
    seconds: float,
    *,
    tokens: int | None = None,
    error: float | None = None,
    damping: float | None = None,
    notes: tuple[str, ...] = (),
) -> ModuleRecord:
    """Make the record of a weight; of experts, `tokens` is what the router sent to the one that got fewest."""
    if plan.kind == "experts":
        routed = linears.routed[plan.name.rpartition(".")[0]].tolist()
        tokens = min(routed)
        notes = (*notes, *_starved(routed))
    note = "; ".join(notes) or None
    return ModuleRecord(module=plan.name, seconds=seconds, error=error, damping=damping, tokens=tokens, note=note)


def _starved(routed: list[int]) -> list[str]:
    few = [f"{expert} ({tokens})" for expert, tokens in enumerate(routed) if tokens < FEW_TOKENS]
    if not few:
        return []
    named = f"the router sent fewer than {FEW_TOKENS} tokens to experts {', '.join(few)}"
    return [f"{named}; all experts were calibrated on all tokens"]
