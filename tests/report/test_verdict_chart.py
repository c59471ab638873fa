import re

import pytest

from mvquant.errors import EvaluationError
from mvquant.report import verdict_chart
from tests.evaluation.examples import make_result

BASE = make_result("reference", {"passkey": 0.9, "recall_cities": 0.8})
OTHERS = [
    make_result(f"out/w{bits}a16", {"passkey": bits / 5, "recall_cities": 0.8}, bits_per_weight=bits + 0.125)
    for bits in (4, 3, 2)
]


def test_every_variant_is_named_from_top_to_bottom(tmp_path):
    path = tmp_path / "pictures" / "verdict.svg"
    verdict_chart([BASE, *OTHERS], path)
    text = path.read_text()
    comments = re.findall(r"<!-- (.*?) -->", text)
    named = [comment for comment in comments if comment.startswith("w")]
    assert named == ["w4a16", "w3a16", "w2a16"]
    assert "reference" not in comments
    assert {"reading (answer in the prompt)", "recall (answer in the weights)"} <= set(comments)


def test_a_group_that_nobody_ran_is_left_out(tmp_path):
    path = tmp_path / "verdict.svg"
    verdict_chart([make_result("a", {"passkey": 0.9}), make_result("b", {"passkey": 0.5})], path)
    assert "recall" not in path.read_text()


def test_png_by_its_name(tmp_path):
    path = tmp_path / "verdict.png"
    verdict_chart([BASE, *OTHERS], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path):
    with pytest.raises(EvaluationError, match="needs a baseline and at least one other"):
        verdict_chart([BASE], tmp_path / "verdict.png")


@pytest.mark.parametrize("name", ["verdict.docx", "file/verdict.png"])
def test_a_picture_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot write the picture"):
        verdict_chart([BASE, *OTHERS], tmp_path / name)


def test_equal_results_give_an_equal_svg(tmp_path):
    for name in ("one.svg", "two.svg"):
        verdict_chart([BASE, *OTHERS], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
