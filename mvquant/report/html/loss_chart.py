"""Points lost in reading and in recall, with intervals: one strip for each variant, all on one scale."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mvquant.comparison import VariantResult
from mvquant.evaluation import Estimate, Knowledge
from mvquant.report.comparison_table import differing_keys
from mvquant.report.html.marks import SIGNS, interval
from mvquant.report.html.material import Material
from mvquant.report.html.svg import Scale, across, element, joined, scale_over, vertical
from mvquant.report.html.words import number, with_limits
from mvquant.report.partial import tasks_of

HEIGHT = 44.0
_PLACES: dict[Knowledge, float] = {"contextual": 15.0, "parametric": 31.0}
_LEAST_SPAN = 8.0


@dataclass(frozen=True)
class Strip:
    """One variant.

    Attributes:
        name: of the variant.
        detail: its bits, whether it is a control, and groups of which it answered only some tasks.
        control: drawn more quietly.
        losses: by the words for people, as text.
        plot: the picture; it says nothing that `losses` does not.
    """

    name: str
    detail: str
    control: bool
    losses: dict[str, str]
    plot: Markup


@dataclass(frozen=True)
class LossChart:
    """All strips, and the axis that they share."""

    strips: tuple[Strip, ...]
    axis: Markup


def loss_chart(material: Material) -> LossChart | None:
    """Draw every variant and control that lost or kept anything; None where there is none."""
    drawn = [variant for variant in material.compared if _drops(variant)]
    if not drawn:
        return None
    ends = [100 * end for variant in drawn for drop in _drops(variant).values() for end in (drop.low, drop.high)]
    scale = scale_over([0.0, *ends], _LEAST_SPAN)
    keys_differ = differing_keys(material.results.variants)
    strips = (_strip(variant, scale, _parts(variant, material), keys_differ=keys_differ) for variant in drawn)
    return LossChart(tuple(strips), _axis(scale))


def _parts(variant: VariantResult, material: Material) -> list[str]:
    found = {sign: tasks_of(variant, material.results, group) for group, sign in SIGNS.items()}
    return [f"{sign} of {said}" for sign, said in found.items() if said]


def _drops(variant: VariantResult) -> dict[Knowledge, Estimate]:
    found: dict[Knowledge, Estimate] = {}
    for group in SIGNS:
        score = variant.groups.get(group)
        if score is not None and score.drop is not None:
            found[group] = score.drop
    return found


def _strip(variant: VariantResult, scale: Scale, parts: Sequence[str], *, keys_differ: bool) -> Strip:
    drops = _drops(variant)
    marks = [interval(drop, scale, _PLACES[group], group) for group, drop in drops.items()]
    bits = "" if variant.bits_per_weight is None else f"{number(variant.bits_per_weight, 2)} bits per weight"
    keys = f"{number(variant.bits_per_cached_key, 2)} per cached key" if keys_differ else ""
    control = "control" if variant.role == "control" else ""
    return Strip(
        name=variant.name,
        detail=", ".join(part for part in (bits, keys, control, *parts) if part),
        control=variant.role == "control",
        losses={SIGNS[group]: with_limits(drop) for group, drop in drops.items()},
        plot=element("svg", _grid(scale, HEIGHT), *marks, class_="plot", height=HEIGHT, aria_hidden="true"),
    )


def _grid(scale: Scale, height: float) -> Markup:
    return joined(vertical(scale.place(tick), 0, height, "zero" if tick == 0 else "grid") for tick in scale.ticks())


def _axis(scale: Scale) -> Markup:
    labels = [
        element("text", number(tick, 0 if tick.is_integer() else 1), x=across(scale.place(tick)), y=14, class_="tick")
        for tick in scale.ticks()
    ]
    return element("svg", *labels, class_="plot", height=20, aria_hidden="true")
