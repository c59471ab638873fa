import pytest

from mvquant.comparison import comparison_paths, comparison_recipe, load_comparison_recipe, parse_comparison
from mvquant.errors import ConfigError, UnknownNameError
from mvquant.recipe import recipe_paths

GOOD = """
summary: 3 bits
model: reference
variants:
  - w3a16
  - mv-protect-w3a16
  - name: mine
    quantize: {summary: x, weights: {scheme: w3a16}, protect: {policy: slow-pairs, pairs: 0.1}}
equal_bytes: true
"""


def test_a_variant_can_be_one_word_or_a_recipe_in_place(tmp_path):
    (tmp_path / "out").mkdir()
    found = parse_comparison(GOOD + f"tasks: contextual, gsm8k\n# {tmp_path}", "here")
    assert [entry.name for entry in found.variants] == ["w3a16", "mv-protect-w3a16", "mine"]
    assert found.variants[2].quantize.protect.pairs == 0.1
    assert found.tasks == ("contextual", "gsm8k")
    words = comparison_recipe(
        {"model": "m", "variants": [str(tmp_path / "out"), "a/b.yaml", "c/plan.json"]}, "x"
    ).variants
    assert [entry.name for entry in words] == ["out", "b", "plan"]
    assert (words[0].checkpoint, words[1].recipe, str(words[2].plan)) == (tmp_path / "out", "a/b.yaml", "c/plan.json")


def test_every_mistake_is_listed():
    with pytest.raises(ConfigError) as error:
        parse_comparison("model: reference\nvariants: [w4a15, {scheme: w9}, {name: x}]\nlimt: 3\nseed: a", "c.yaml")
    text = str(error.value)
    assert text.startswith("c.yaml:\n  - variants.0: unknown scheme 'w4a15': did you mean 'w4a16'")
    assert "unknown scheme 'w9'" in text
    assert "variants.2: give one of `scheme`" in text
    assert "limt: Extra inputs are not permitted (known: summary, model, variants, tasks, limit" in text
    assert "seed: " in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- w4a16", "is not a mapping"),
        ("summary: x\nweights: {scheme: w4a16}", "a recipe for one model"),
        ("model: m\nvariants: []", "variants: Tuple should have at least 1 item"),
        ("model: m\nvariants: [w4a16, w4a16]", "'w4a16' is used more than once"),
        ("model: m\nvariants: [w4a16]\ntext: {sequences: 1}", "text.sequences: "),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_comparison(text, "c.yaml")


def test_names_and_paths(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown comparison 'nope'"):
        load_comparison_recipe("nope")
    with pytest.raises(ConfigError, match="no such file"):
        load_comparison_recipe("nope.yaml")
    (tmp_path / "latin.yaml").write_bytes("summary: café".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"(?s)latin\.yaml.*it is not UTF-8 text"):
        load_comparison_recipe(str(tmp_path / "latin.yaml"))
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert load_comparison_recipe(str(tmp_path / "mine.yaml")).equal_bytes


@pytest.mark.parametrize("name", comparison_paths())
def test_shipped_comparisons_are_valid_and_no_recipes(name):
    assert load_comparison_recipe(name).summary
    assert name not in recipe_paths()
