from markdown_it import MarkdownIt

from mvquant.report import markdown_table
from tests.evaluation.examples import make_result

BASE = make_result("reference", {"m_passkey": 0.9, "m_recall_cities": 0.8}, bits_per_weight=16.0)
OTHER = make_result("out/w3a16", {"m_passkey": 0.6, "m_recall_cities": 0.8}, bits_per_weight=3.125)


def cells(text):
    """Rows of cells of every table, as a Markdown parser reads them."""
    tables, tokens = [], MarkdownIt("commonmark").enable("table").parse(text)
    for token in tokens:
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level == 4 + (token.level == 5):
            tables[-1][-1].append(token.content)
    return tables


def test_a_markdown_reader_finds_two_tables():
    groups, tasks = cells(markdown_table([BASE, OTHER]))
    assert groups[0] == ["model", "bits/weight", "reading", "lost", "recall", "lost"]
    assert groups[1] == ["reference", "16.00", "90.0", "baseline", "80.0", "baseline"]
    assert groups[2][:3] == ["w3a16", "3.12", "60.0"]
    assert groups[2][3].startswith("30.0 [")
    assert tasks == [
        ["model", "passkey", "recall cities"],
        ["reference", "90.0", "80.0"],
        ["w3a16", "60.0", "80.0"],
        ["*chance*", "0.0", "0.0"],
    ]


def test_sentences_are_a_list_and_the_words_are_explained():
    text = markdown_table([BASE, OTHER])
    assert "\n- w3a16: reading lost 30.0 points (" in text
    assert "the answer is in the prompt" in text
    assert text.endswith("[95 % interval].\n")


def test_one_result_needs_no_sentence():
    assert "\n- " not in markdown_table([BASE])
