"""The cache of a plan: on for a block, or whenever a loaded checkpoint generates."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

from transformers import PreTrainedModel

from mvquant.kvcache.attach import AttachedCache, has_quantized_cache, quantized_cache
from mvquant.plan import Plan

_CHOICES = ("past_key_values", "cache_implementation")
"""Arguments of `generate` with which a caller chooses a cache."""


def own_plan(model: PreTrainedModel) -> Plan | None:
    """The plan that a model was loaded with from an mvquant checkpoint; None for any other."""
    plan = getattr(getattr(model.config, "quantization_config", None), "plan", None)
    return plan if isinstance(plan, Plan) else None


@contextmanager
def planned_cache(model: PreTrainedModel, plan: Plan | None = None) -> Generator[AttachedCache | None]:
    """Have a model cache keys and values as its plan says until the end of the block, whoever runs it.

    Scoring a text counts too: see `mvquant.kvcache.quantized_cache`.

    Args:
        model: the model, quantized already or not.
        plan: the plan; that of the checkpoint where None.

    Yields:
        What makes further caches, and knows the latest; None where no plan speaks of a cache.

    Raises:
        PlanError: a plan for another model.
        UsageError: the model is in such a block already.
    """
    known = own_plan(model) if plan is None else plan
    if known is None or known.cache is None:
        yield None
        return
    with quantized_cache(model, known.cache, prefill=known.prefill, round_queries=known.round_queries) as attached:
        yield attached


def generate_with_planned_cache(model: PreTrainedModel) -> None:
    """Have `model.generate` use the cache of the model's own plan from now on, unless a call brings another."""
    vars(model)["generate"] = MethodType(_generate, model)


def _generate(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as transformers has it
    """Generate as the class does, in a block of `planned_cache`."""
    generate: Callable[..., Any] = cast("type[Any]", type(model)).generate
    if has_quantized_cache(model) or any(kwargs.get(name) is not None for name in _CHOICES):
        return generate(model, *args, **kwargs)
    with planned_cache(model):
        return generate(model, *args, **kwargs)
