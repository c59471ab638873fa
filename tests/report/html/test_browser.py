"""The page in headless Chromium: run with `pytest -m backend` where playwright and a chromium are installed."""

import shutil

import pytest

from mvquant.report.html import html_report
from mvquant.report.html.material import Material
from tests.report.comparisons import HOSTILE, flip, hostile_flip, hostile_results, results
from tests.report.html.examples import full_material

pytestmark = pytest.mark.backend

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open material as a page; whatever it says on the console, or asks of the network, fails the test."""
    said, pages = [], []

    def show(material, **settings):
        path = tmp_path / "report.html"
        path.write_text(html_report(material), encoding="utf-8")
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **settings})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.close()
    assert said == []


def field(page, label):
    return page.locator("#flip-filters").get_by_label(label)


def columns(page, table, number):
    return page.locator(f"{table} tbody tr td:nth-child({number}) .value").all_inner_texts()


def test_a_table_sorts_down_up_and_back_by_mouse_and_by_keyboard(opened):
    page = opened(full_material())
    heading = page.locator("#tasks table.matrix tr.names th").nth(1)
    original = columns(page, "#tasks table.matrix", 2)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    down = columns(page, "#tasks table.matrix", 2)
    assert [text.split("\n")[0][:4] for text in down] == sorted((text[:4] for text in original), reverse=True)
    assert page.locator("#said").inner_text() == "sorted by find, descending"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert columns(page, "#tasks table.matrix", 2) == down[::-1]
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert columns(page, "#tasks table.matrix", 2) == original


def test_a_row_heading_sorts_as_text_and_only_one_column_at_a_time(opened):
    page = opened(full_material())
    buttons = page.locator("#sizes table tr.names button")
    buttons.nth(1).click()
    buttons.nth(0).click()
    assert page.locator("#sizes table th[aria-sort]").count() == 1
    names = page.locator("#sizes table tbody th .value").all_inner_texts()
    assert names == sorted(names)


def test_numbers_sort_as_numbers_and_dashes_stay_last(opened):
    page = opened(full_material())
    button = page.locator("#sizes table tr.names button").nth(4)
    for direction, values in (("descending", ["12.3", "11.0"]), ("ascending", ["11.0", "12.3"])):
        button.click()
        assert page.locator("#sizes table th[aria-sort]").get_attribute("aria-sort") == direction
        assert columns(page, "#sizes table", 5) == [*values, "\N{EN DASH}"]


def test_flips_are_filtered_opened_and_walked_with_the_keyboard(opened):
    names = ("full precision", "w3", "random-w3")
    items = [flip(number, prompt=f"Where is number {number}?") for number in range(60)]
    mended = flip(99, task="set_know", names=("w3", "full precision", "random-w3"), prompt="What is known?")
    page = opened(Material(results(), flips=(*items, mended)))
    lines = page.locator("#flip-list .flip")
    assert page.locator("#flip-count").inner_text() == "61 items, the first 50 shown"
    page.locator("#flip-more").click()
    assert lines.count() == 61
    field(page, "Direction").select_option("fixed")
    assert (lines.count(), page.locator(".flip .state").inner_text()) == (1, "✓ mended")
    field(page, "Direction").select_option("")
    field(page, "Words").fill("NUMBER 41")
    assert lines.count() == 1
    field(page, "Words").fill("nowhere")
    assert page.locator("#flip-count").inner_text() == "No item fits these filters."
    field(page, "Words").fill("")
    field(page, "Model").select_option("")
    field(page, "Task").select_option("set_know")
    assert lines.count() == 1
    field(page, "Task").select_option("")
    lines.nth(0).locator("summary").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert lines.nth(1).get_attribute("open") is not None
    assert lines.nth(1).locator("pre").inner_text() == "Where is number 1?"
    told = lines.nth(1).locator(".said li").all_inner_texts()
    assert len(told) == 2
    assert all(name in " ".join(told) for name in names)


def test_a_cell_leads_to_its_flips(opened):
    page = opened(full_material())
    page.locator("#tasks a.jump").first.click()
    assert field(page, "Model").input_value() == "1"
    assert field(page, "Task").input_value() == "set_find"
    assert page.locator("#flip-list .flip").count() == 3
    assert page.evaluate("document.activeElement.id") == "flips"


def test_a_mark_tells_its_name_from_the_list_by_keyboard_and_stays_when_it_is_chosen(opened):
    page = opened(full_material())
    tips = page.locator("#sizes .tip:visible")
    entry = page.locator("#sizes .entries button").nth(1)
    assert tips.count() == 0
    entry.focus()
    assert tips.all_text_contents() == ["random-w3", "random-w3"]
    page.keyboard.press("Enter")
    entry.evaluate("(button) => button.blur()")
    assert (tips.count(), entry.get_attribute("aria-pressed")) == (2, "true")
    entry.focus()
    page.keyboard.press("Enter")
    entry.evaluate("(button) => button.blur()")
    assert (tips.count(), entry.get_attribute("aria-pressed")) == (0, "false")
    page.locator('#sizes .point[data-label="1"] .body').first.hover()
    assert tips.all_text_contents() == ["w3", "w3"]


@pytest.mark.parametrize("width", [360, 1280])
def test_names_beside_marks_are_those_for_the_width(opened, width):
    page = opened(full_material(), viewport={"width": width, "height": 900})
    shown = page.locator("#sizes .name:visible")
    sizes = {name.split()[1] for name in shown.evaluate_all("(all) => all.map((each) => each.getAttribute('class'))")}
    assert sizes == {"narrow" if width < 400 else "wide"}


def test_hostile_strings_are_shown_as_they_are(opened):
    page = opened(Material(hostile_results(), flips=(hostile_flip(),)))
    page.locator("#flip-list summary").first.click()
    assert page.locator("#flip-list pre").first.text_content() == HOSTILE
    assert page.evaluate("[...document.images].every((image) => image.src.startsWith('data:'))")
    assert HOSTILE.split("\n")[0][:20] in page.locator("h1").text_content()


@pytest.mark.parametrize("width", [320, 360, 768])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_its_screen(opened, width, scheme):
    for material in (full_material(), Material(hostile_results(), flips=(hostile_flip(),))):
        page = opened(material, viewport={"width": width, "height": 780}, color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate(WIDE) == 0


def test_the_dark_page_is_dark(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened(full_material(), color_scheme="light").evaluate(ground)
    dark = opened(full_material(), color_scheme="dark").evaluate(ground)
    brightness = [sum(map(int, colour.strip("rgb()").split(","))) for colour in (light, dark)]
    assert brightness[0] > 700
    assert brightness[1] < 100


def test_everything_but_flips_is_there_without_scripts(opened):
    page = opened(full_material(), java_script_enabled=False)
    assert "The browser of flips needs JavaScript" in page.locator("noscript").inner_text()
    assert "11.3 points more reading (answers in the prompt)" in page.locator(".headline").inner_text()
    assert page.locator("#tasks table.matrix tbody tr").count() == 3


def test_everything_interactive_is_reached_by_tab_and_has_a_name(opened):
    page = opened(full_material())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    nameless = page.evaluate(
        "[...document.querySelectorAll('a, button, select, input, summary, [tabindex=\"0\"]')].filter((each) =>"
        " !(each.textContent.trim() || each.getAttribute('aria-label') || each.labels?.length)).length"
    )
    assert nameless == 0
