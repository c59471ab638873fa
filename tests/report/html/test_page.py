import base64
import hashlib
import json
import re

import pytest

from mvquant.report.html import html_report
from mvquant.report.html.material import Material
from mvquant.report.html.words import points
from tests.report.comparisons import HOSTILE, flip, hostile_flip, hostile_results, results, variant
from tests.report.html.examples import full_material, plan
from tests.report.html.pages import Page


@pytest.fixture(scope="module")
def whole():
    return html_report(full_material())


def test_the_page_is_well_formed_and_has_every_part(whole):
    page = Page(whole)
    assert page.mistakes == []
    sections = {attributes["id"] for attributes in page.all("section")}
    assert sections == {
        "verdict", "losses", "sizes", "contrasts", "tasks", "text", "flips", "inside", "reproduce"
    }  # fmt: skip
    targets = [attributes["href"][1:] for attributes in page.all("a") if "jump" not in attributes.get("class", "")]
    assert set(targets) - {"main"} == sections


def test_ids_are_unique_and_labels_point_at_them(whole):
    page = Page(whole)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {each["aria-labelledby"] for _, each in page.elements if "aria-labelledby" in each} <= set(ids)
    assert {each["href"].removeprefix("#") for each in page.all("a")} <= set(ids)


def test_nothing_is_fetched_and_nothing_is_styled_or_run_in_place(whole):
    page = Page(whole)
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert re.match(r"data:image/png;base64,|#|$", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", whole.split("</head>")[0])
    assert not {"link", "iframe", "object", "embed", "base", "form action"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:", whole)


def test_the_policy_allows_exactly_the_page_s_own_style_and_script(whole):
    page = Page(whole)
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        text = next(text for path, text in page.texts if path[-1:] == (tag,) and not text.startswith("{"))
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_no_string_becomes_markup():
    material = Material(
        hostile_results(), flips=(hostile_flip(),), plans={f"w3 {HOSTILE}": plan(reason=HOSTILE, model=HOSTILE)}
    )
    text = html_report(material)
    page = Page(text)
    assert page.mistakes == []
    assert all(each.get("src", "").startswith("data:") and "onerror" not in each for each in page.all("img"))
    assert len(page.all("script")) == 2
    assert "<img src=x" not in text
    assert page.words().count(HOSTILE) >= 20
    (data,) = [text for path, text in page.texts if path[-1:] == ("script",) and text.startswith("{")]
    assert HOSTILE in json.loads(data)["items"][0][2]


def test_figures_are_those_of_the_results(whole):
    material = full_material()
    page = Page(whole)
    values = [float(each["data-value"]) for tag, each in page.elements if tag in ("td", "th") and "data-value" in each]
    words = page.words()
    for each in material.results.variants:
        assert {score.accuracy.value for score in each.tasks.values()} <= set(values)
        assert {score.corrected.value for score in each.groups.values()} <= set(values)
        assert each.bits_per_weight in values
        assert each.bytes in values
        if each.contextual_minus_parametric is not None:
            gap = each.contextual_minus_parametric
            assert gap.value in values
            assert f"{points(gap.low)} to {points(gap.high)}" in words
    assert "12.3" in words
    assert "11.3 points more reading than recall (7.3 to 15.3)" in words
    assert material.results.command in words
    for each in material.results.tasks.values():
        assert each.data_hash in words


def test_equal_material_gives_equal_bytes(whole):
    assert html_report(full_material()) == whole


def test_what_is_not_there_is_left_out_cleanly():
    bare = results(
        variant("w3", groups={}, bits_per_weight=None, bytes=None, contextual_minus_parametric=None, text=None)
    )
    bare = bare.model_copy(update={"variants": (bare.variants[0].model_copy(update={"text": None}), bare.variants[1])})
    page = Page(html_report(Material(bare)))
    assert page.mistakes == []
    assert {each["id"] for each in page.all("section")} == {"verdict", "sizes", "tasks", "flips", "reproduce"}
    assert "None: every model answered every item alike" in page.words()
    linked = {each["href"] for each in page.all("a")}
    assert not linked & {"#losses", "#contrasts", "#text", "#inside"}


def test_links_to_flips_say_all_that_is_seen_and_where_they_lead(whole):
    """A label would hide what stands in the link, such as that a difference is significant."""
    page = Page(whole)
    jumps = [each for each in page.all("a") if each.get("class") == "jump"]
    assert jumps
    assert not any("aria-label" in each for each in jumps)
    words = " ".join(" ".join(text for path, text in page.texts if "a" in path).split())
    assert re.search(r"62.0 ▼\s+significantly worse .30 \+2 ; show the flips of w3 on set_find", words)


def test_without_answers_nobody_says_that_all_are_alike():
    failed = variant("w2", tasks={}, groups={}, contextual_minus_parametric=None)
    failed = failed.model_copy(update={"tasks": {}})
    words = Page(html_report(Material(results(failed)))).words()
    assert "None can be told: there are no answers of two models to compare." in words
    assert "every model answered every item alike" not in words


def test_a_variant_that_failed_is_named_with_its_reason():
    failed = variant(
        "w2",
        tasks={},
        groups={},
        contextual_minus_parametric=None,
        failures=({"part": "loading", "message": "disk full"},),
    )
    words = Page(html_report(Material(results(failed)))).words()
    assert "Something failed" in words
    assert re.search(r"w2\s*, loading:\s*disk full", words)


def test_twenty_variants_and_seven_tasks_stay_under_three_megabytes():
    names = tuple(f"variant-{number}" for number in range(20))
    answers = flip(names=("full precision", *names)).answers
    items = tuple(flip(number, prompt="word " * 400, answers=answers) for number in range(7 * 512))
    text = html_report(Material(results(*(variant(name) for name in names)), flips=items))
    assert len(text.encode()) < 3_000_000
    assert "another wrong: 3,584 of them." in text
