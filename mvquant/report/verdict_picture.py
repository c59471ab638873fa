"""The verdict as a picture: points lost in reading and in recall, with intervals."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvquant.errors import EvaluationError
from mvquant.evaluation import EvalResult, Knowledge
from mvquant.report.verdict import WORDS, Verdict, judge

# Okabe & Ito's blue and vermilion, with shapes of their own: told apart without colour as well.
_STYLE: dict[Knowledge, tuple[str, str]] = {"contextual": ("#0072B2", "o"), "parametric": ("#D55E00", "s")}
_OFFSET: dict[Knowledge, float] = {"contextual": -0.15, "parametric": 0.15}
_LEGEND: dict[Knowledge, str] = {
    "contextual": "reading (answer in the prompt)",
    "parametric": "recall (answer in the weights)",
}


def verdict_chart(results: Sequence[EvalResult], path: Path, baseline: EvalResult | None = None) -> None:
    """Draw the drops of every model but the baseline, in the given order from top to bottom.

    Args:
        results: the baseline and at least one other.
        path: the picture; its ending chooses the format (`.png`, `.svg`, `.pdf`).
        baseline: what the others are compared with; the first result if not given.

    Raises:
        EvaluationError: nothing to compare, results that are not about the same data, or a file that cannot
            be written.
    """
    verdicts = [verdict for verdict in judge(results, baseline) if verdict.comparison]
    if not verdicts:
        message = "a verdict needs a baseline and at least one other result"
        raise EvaluationError(message)
    figure = Figure(figsize=(7.5, 1.5 + 0.5 * len(verdicts)))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.05)
    axes = figure.add_subplot()
    for group in WORDS:
        _draw_group(axes, verdicts, group)
    _label(axes, verdicts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # equal results give an equal file: matplotlib would put the time and random ids into an SVG
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with rc_context({"svg.hashsalt": "mvquant"}):
            figure.savefig(path, dpi=160, metadata=metadata)
    except (OSError, ValueError) as error:
        message = f"cannot write the picture {path}: {error}"
        raise EvaluationError(message) from None


def _draw_group(axes: Axes, verdicts: Sequence[Verdict], group: Knowledge) -> None:
    colour, marker = _STYLE[group]
    drops = [
        (place + _OFFSET[group], verdict.comparison.groups[group])
        for place, verdict in enumerate(verdicts)
        if verdict.comparison and group in verdict.comparison.groups
    ]
    if not drops:
        return
    axes.errorbar(
        [100 * drop.value for _, drop in drops],
        [place for place, _ in drops],
        xerr=[
            [100 * (drop.value - drop.low) for _, drop in drops],
            [100 * (drop.high - drop.value) for _, drop in drops],
        ],
        fmt=marker,
        color=colour,
        markersize=6,
        capsize=3,
        linewidth=1.6,
        label=_LEGEND[group],
    )


def _label(axes: Axes, verdicts: Sequence[Verdict]) -> None:
    names = [
        verdict.name if verdict.bits == "-" else f"{verdict.name}\n{verdict.bits} bits/weight" for verdict in verdicts
    ]
    axes.set_yticks(range(len(verdicts)), names)
    axes.set_ylim(len(verdicts) - 0.5, -0.5)
    # Tiny drops stay tiny: never less than six points from side to side.
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, -1), max(right, 5))
    axes.axvline(0, color="0.4", linewidth=1)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("points of chance-corrected accuracy lost (95 % interval); further right is worse")
    axes.figure.legend(loc="outside upper left", ncols=2, frameon=False)
