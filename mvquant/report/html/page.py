"""The page: every part made ready, and put into its place in the template."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mvquant.comparison import ComparisonResults, VariantResult
from mvquant.report.comparison_remarks import remarks
from mvquant.report.html.flips import packed_flips
from mvquant.report.html.headline import control_sentences, headline, verdict_sentences
from mvquant.report.html.loss_chart import loss_chart
from mvquant.report.html.marks import SIGNS, shape
from mvquant.report.html.massive_maps import massive_maps
from mvquant.report.html.material import Material
from mvquant.report.html.pareto_chart import pareto_charts
from mvquant.report.html.plan_maps import plan_views
from mvquant.report.html.svg import element
from mvquant.report.html.tables import contrast_table, text_table, variant_table
from mvquant.report.html.task_tables import figure_table, task_matrix
from mvquant.report.html.words import NOTHING, number, points, with_limits

_TEMPLATES = Path(__file__).parent / "templates"


def html_report(material: Material) -> str:
    """Return the whole page; the same material gives the same bytes."""
    results = material.results
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=results.settings.summary or f"What quantizing {results.model} loses",
            results=results,
            headline=headline(results),
            sentences=verdict_sentences(results),
            controls=control_sentences(results),
            failures=[(each.name, failure) for each in results.variants for failure in each.failures],
            remarks=_remarks(results),
            signs={sign: element("svg", shape(group), class_="sign", viewBox="-7 -7 14 14") for group, sign in _SIGNS},
            losses=loss_chart(material),
            pareto=pareto_charts(material),
            contrasts=contrast_table(results),
            variants=variant_table(material),
            text=text_table(material),
            matrix=task_matrix(material),
            figures=figure_table(material),
            flips=packed_flips(material),
            answered=sum(bool(each.tasks) for each in results.variants),
            massive=massive_maps(material.analysis, material.stats),
            plans=plan_views(material),
            origins=[each for each in results.variants if each.role != "again"],
            style=_asset("style.css"),
            script=_asset("report.js"),
            policy=_policy(),
        )
        + "\n"
    )


_SIGNS = tuple(SIGNS.items())


def _remarks(results: ComparisonResults) -> list[str]:
    """The remarks of `table.md`; failures, which are bold there, have a place of their own here."""
    count = sum(each.role in ("variant", "control") for each in results.variants)
    several = [f"Intervals are 95 % each; they are not widened for the {count} models compared."] if count > 1 else []
    return [line for line in remarks(results) if not line.startswith("**")] + several


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"points": points, "number": number, "with_limits": with_limits, "kept": _kept}
    environment.filters.update(filters)
    return environment


def _kept(variant: VariantResult, group: str) -> str:
    found = {str(key): score for key, score in variant.groups.items()}.get(group)
    return NOTHING if found is None else points(found.corrected.value)


@cache
def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _policy() -> str:
    """A content security policy under which nothing runs but the page's own script, and nothing is fetched."""
    style, script = (_digest(_asset(name)) for name in ("style.css", "report.js"))
    parts = ("default-src 'none'", "img-src data:", f"style-src {style}", f"script-src {script}", "base-uri 'none'")
    return "; ".join([*parts, "form-action 'none'"])


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
