from rich.console import Console

from mvquant.arch import model_view
from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import Plan
from mvquant.report import format_plan, plan_summary
from tests.tiny_models import tiny_config


def plan(heads=1, **changes):
    bits = (4, 2, 2, 1, 1, 1, 2, 3)
    view = model_view(tiny_config("llama"))
    cache = CachePlan(
        head_dim=16,
        rotary_dim=16,
        keys=KeyFormat(scales="token"),
        layers=tuple(LayerKeys(layer=layer, heads=(HeadKeys(bits=bits),) * heads) for layer in (0, 1)),
        values=ValueFormat(bits=4),
        sinks=4,
        policy="sensitivity, 2 bits, per layer",
    )
    fields = {
        "model": "tiny",
        "family": view.family,
        "dtype": "bfloat16",
        "recipe": recipe_for_scheme("mv-protect-k2v4"),
        "modules": (),
        "kept_parameters": 1000,
        "cache": cache,
        "fold": (((0.5, 2.0, 1.0),),),
        "training_context": 128,
    }
    return Plan(**{**fields, **changes})


def printed(value):
    console = Console(width=80, record=True)
    console.print(value)
    return console.export_text()


def test_bits_of_every_head_are_named():
    text = printed(format_plan(plan()))
    assert "head 0: 4: 0, 3: 7, 2: 1-2 6, 1: 3-5" in text
    assert "sensitivity, 2 bits, per layer; token, scales of 16 bits, post-rope" in text
    assert "V cache: 4 bits, the whole head, per token" in text
    assert "the first 4 tokens" in text
    assert "by 0.5 to 2; 2 of 3 pairs" in " ".join(text.split())


def test_many_heads_are_told_together_unless_asked_for():
    text = printed(format_plan(plan(heads=8)))
    assert "8 heads, 1 to 4 bits; most to 0-7" in text
    assert printed(format_plan(plan(heads=8), every_head=True)).count("head 7: ") == 2


def test_the_summary_tells_weights_and_cache_apart():
    text = " ".join(printed(plan_summary(plan())).split())
    bits = plan().cached_bits
    assert "16 bits per weight: none is quantized; 2 kB in all" in text
    assert f"{bits.average:.3f} bits per cached value at 128 tokens (K {bits.keys:.3f}, V {bits.values:.3f})" in text
