"""Material for pages: plans, massive values and their norms, as small as they can be."""

import torch

from mvquant.analysis import Analysis, LayerAnalysis, MassiveValue, RoleAnalysis
from mvquant.heads import HeadRows
from mvquant.massive import HeadMoments
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import CalibrationRecord, ModulePlan, Plan, Protection
from mvquant.report.html.material import Material
from mvquant.scheme import WeightScheme
from mvquant.stats import CalibrationStats, LayerStats
from tests.report.comparisons import flip, results

CALIBRATION = CalibrationRecord(source="corpus", sequences=2, length=16, seed=0, hash="c" * 64)


def plan(reason="most energy", model="tiny"):
    """Two layers; pair 3 of both heads of K is protected in layer 0, of head 1 only in layer 1."""
    modules = [_key_module(0, {0: (3,), 1: (3,)}, reason), _key_module(1, {1: (3,)}, reason)]
    return Plan(
        model=model,
        family="llama",
        dtype="bfloat16",
        recipe=recipe_for_scheme("mv-protect-w3a16"),
        modules=tuple(modules),
        kept_parameters=10,
    )


def _key_module(layer, pairs, reason):
    name = f"model.layers.{layer}.self_attn.k_proj"
    heads = HeadRows(module=name, role="k", heads=2, head_dim=8, rotary_dim=8)
    return ModulePlan(
        name=name,
        layer=layer,
        shape=(16, 128),
        scheme=WeightScheme(bits=3),
        protected_scheme=WeightScheme(bits=8),
        protected=(Protection(heads=heads, pairs=pairs),),
        reason=reason,
    )


def analysis():
    """One layer of 8-dim heads; (head 1, dim 6) of Q is massive, in the slow pair 2."""
    massive = (MassiveValue(head=1, dim=6, ratio=3.5, pair=2, wavelength=200.0, slow=True),)
    roles = {
        name: RoleAnalysis(
            role=name[0],
            stage="before RoPE" if name.endswith("pre") else "after RoPE",
            heads=4 if name[0] == "q" else 2,
            head_dim=8,
            largest_ratio=3.5 if name == "q" else 1.2,
            massive=massive if name == "q" else (),
            energy_share=() if name == "v" else (0.1, 0.2, 0.6, 0.1),
        )
        for name in ("q_pre", "k_pre", "q", "k", "v")
    }
    layer = LayerAnalysis(
        layer=0,
        layer_type=None,
        training_context=128,
        wavelengths=(6.0, 60.0, 200.0, 600.0),
        pair_dims=((0, 4), (1, 5), (2, 6), (3, 7)),
        **roles,
    )
    return Analysis(model="tiny", family="llama", ratio=3.0, calibration=CALIBRATION, versions={}, layers=(layer,))


def stats():
    """Norms of which (head 1, dim 6) of Q stands out."""
    moments = {name: _moments(4 if name[0] == "q" else 2) for name in ("q_pre", "k_pre", "q", "k", "v")}
    moments["q"].squares[1, 6] = 900.0
    layer = LayerStats(layer=0, **moments)
    return CalibrationStats(layers=(layer,), source="corpus", sequences=2, length=16, seed=0, hash="c" * 64)


def _moments(heads):
    squares = torch.full((heads, 8), 16.0, dtype=torch.float64)
    return HeadMoments(
        total=torch.zeros_like(squares), squares=squares, within_variance=torch.zeros_like(squares), tokens=32
    )


def full_material():
    """A comparison with everything that a page can show."""
    return Material(
        results(), flips=tuple(map(flip, range(3))), plans={"w3": plan()}, analysis=analysis(), stats=stats()
    )
