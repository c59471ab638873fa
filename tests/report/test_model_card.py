import pytest
from markdown_it import MarkdownIt

from mvquant.errors import UnknownNameError
from mvquant.report.model_card import model_card_section, plain
from tests.report.comparisons import HOSTILE, around, hostile_results, partly, results, variant


def texts(markdown, kind="inline"):
    return [token for token in MarkdownIt("commonmark").enable("table").parse(markdown) if token.type == kind]


def test_a_card_says_size_losses_tasks_and_how_to_do_it_again():
    card = model_card_section(results(), "w3")
    assert card.startswith("## What quantization cost\n\nw3: summary of w3. 3.125 bits per weight")
    assert "Reading lost minus recall lost: 11.3 [7.3, 15.3] points, a clear difference." in card
    assert "In a sentence: it loses 11.3 points more reading than recall (7.3 to 15.3)." in card
    assert "| reading |           90.0 |      77.7 | 12.3 [8.3, 16.3] |" in card
    cells = [token.content for token in texts(card)]
    row = cells.index("set\\_find")
    assert cells[row : row + 7] == ["set\\_find", "100", "0.0", "90.0", "62.0\\*", "30 / 2", "<0.001"]
    assert texts(card, "fence")[0].content == results().command + "\n"
    assert "a" * 64 in card


def test_only_variants_and_controls_have_a_card():
    assert "random-w3" in model_card_section(results(), "random-w3")
    with pytest.raises(UnknownNameError, match="did you mean 'w3'"):
        model_card_section(results(), "w33")
    with pytest.raises(UnknownNameError):
        model_card_section(results(), "full precision")


def test_both_models_are_shown_over_the_tasks_that_were_answered():
    found = results(partly(variant("w3", 0.4), "set_find"))
    scores = {**found.variants[0].tasks}
    scores["set_choose"] = scores["set_choose"].model_copy(update={"corrected": around(0.7)})
    baseline = found.variants[0].model_copy(update={"tasks": scores})
    card = model_card_section(found.model_copy(update={"variants": (baseline, found.variants[1])}), "w3")
    cells = [token.content for token in texts(card)]
    row = cells.index("reading")
    assert cells[row : row + 4] == ["reading", "70.0", "50.0", "40.0 [36.0, 44.0]"]
    assert "- Reading is the mean of 1 of 2 tasks only, for both models." in card
    assert "Recall is the mean" not in card


def test_what_full_precision_did_not_answer_is_told():
    found = results(variant("w3", 0.4))
    card = model_card_section(
        found.model_copy(update={"variants": (partly(found.variants[0], "set_find"), found.variants[1])}), "w3"
    )
    assert "- Full precision answered 1 of 2 tasks of reading; what is lost is over these." in card


def test_hostile_names_stay_text():
    hostile = hostile_results()
    card = model_card_section(hostile, f"w3 {HOSTILE}")
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    inline = [child.type for token in tokens for child in token.children or []]
    assert not {"html_inline", "image", "link_open"} & set(inline)
    assert not [token for token in tokens if token.type == "html_block"]
    assert [token.content for token in tokens if token.type == "fence"] == [hostile.command + "\n"]


def test_plain_text_reads_back_as_it_was():
    for text in (HOSTILE, "a_b*c|d", "[x](y)", "#1 <b>"):
        (token,) = texts(plain(text))
        assert "".join(child.content for child in token.children) == " ".join(text.split())
