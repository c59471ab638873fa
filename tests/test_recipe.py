import pytest

from mvquant.errors import ConfigError, UnknownNameError
from mvquant.method_settings import Gptq, Rtn
from mvquant.named_schemes import recipe_for_scheme
from mvquant.recipe import Recipe, load_recipe, parse_recipe, recipe_paths
from mvquant.scheme import SCHEME_NAMES, WeightScheme

SHIPPED = [
    *(f"{prefix}w{bits}a16" for prefix in ("", "mv-protect-") for bits in (8, 4, 3, 2)),
    *("k2", "mv-protect-k2", "mv-protect-w4a16-k2"),
    *(f"{prefix}{method}-w4a16" for prefix in ("", "mv-protect-") for method in ("gptq", "awq", "autoround")),
    *("smoothquant-w8a8", "mv-protect-smoothquant-w8a8"),
]


def test_every_promised_recipe_is_shipped():
    assert sorted(recipe_paths()) == sorted(SHIPPED)


@pytest.mark.parametrize("name", SCHEME_NAMES)
def test_scheme_names_read_back(name):
    assert WeightScheme.model_validate(name).name == name


def test_all_mistakes_are_reported_at_once():
    text = """
    summary: x
    weights: {scheme: {bits: 5, group_size: 12}, ignor: []}
    protect: {policy: massiv, pairs: 2}
    calibrations: {}
    """
    with pytest.raises(ConfigError) as error:
        parse_recipe(text, "mine.yaml")
    message = str(error.value)
    assert message.startswith("mine.yaml:")
    assert len(error.value.mistakes) == 6
    assert "weights.scheme.bits: Input should be 2, 3, 4, 8 or 16, not 5" in message
    assert "group_size 12 is not one of 32, 64, 128, or -1" in message
    assert "weights.ignor: unknown key, did you mean 'ignore'?" in message
    assert "did you mean 'massive'?" in message
    assert "protect.pairs" in message
    assert "calibrations: unknown key, did you mean 'calibration'?" in message


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("- a", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("summary: x\nweights: {scheme: w4a15}", "unknown weight scheme 'w4a15': did you mean 'w4a16'?"),
        ("summary: x\nweights: {scheme: bf16}", "bf16 quantizes nothing"),
        ("summary: x\nweights: {scheme: w4a16}\nprotect: {policy: random}", "give one budget"),
        ("summary: x", "mine.yaml:\n  - quantizes nothing: give `weights`, `kv_cache` or both"),
        ("summary: x\nfold: {strength: 0.5}", "quantizes nothing"),
        ("summary: x\nkv_cache: {keys: {bits: 2}}\nprotect: {pairs: 0.1}", "`protect` is of weights"),
        ("summary: x\nkv_cache: {keys: {bits: 0.5}}", "kv_cache.keys: bits: 0.5 is below what one bit per pair needs"),
        ("summary: x\nkv_cache: {keys: {bits: 2, policy: sensitivty}}", "did you mean 'sensitivity'?"),
        ("summary: x\nkv_cache: {keys: {bit: 2}}", "kv_cache.keys.bit: unknown key, did you mean 'bits'?"),
        ("summary: x\nkv_cache: {values: {bits: 5}}", "kv_cache.values.bits: Input should be 2, 3, 4, 8 or 16, not 5"),
        ("summary: x\nkv_cache: {keys: {bits: 2}}\nfold: {}", "fold.strength: Field required"),
        ("summary: x\nweights: {scheme: w4a16}\nprotect: {pairs: 0.1, bytes: 3}", "give one budget"),
        ("weights: {scheme: w4a16}", "summary: Field required"),
    ],
)
def test_a_mistake_is_explained(text, mistake):
    with pytest.raises(ConfigError, match=r"mine\.yaml") as error:
        parse_recipe(text, "mine.yaml")
    assert mistake in str(error.value)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'mv-protect-w4a16'"):
        load_recipe("mv-protect-w4a61")
    with pytest.raises(UnknownNameError, match="unknown scheme 'mv-protct': did you mean 'mv-protect'"):
        recipe_for_scheme("mv-protct")
    with pytest.raises(ConfigError, match="there is no such file"):
        load_recipe("nowhere.yaml")


def test_a_recipe_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("summary: café".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"(?s)mine\.yaml.*it is not UTF-8 text"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_a_recipe_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("summary: mine\nweights: {scheme: {bits: 2, group_size: -1, symmetric: false}}\n")
    assert load_recipe(str(path)).weights.scheme.name == "w2a16-row-asym"


def test_a_recipe_of_the_cache_needs_neither_weights_nor_a_policy_for_them():
    recipe = parse_recipe("summary: x\nkv_cache: {keys: {bits: 2.25}, values: {bits: 4}, sinks: 4}", "mine.yaml")
    assert recipe.weights is None
    assert recipe.kv_cache.keys.bits == 2.25
    assert recipe.kv_cache.values.bits == 4
    assert recipe.needs_calibration
    assert recipe.needs_rope


W4, W8A8 = "summary: x\nweights: {scheme: w4a16, method: %s}", "summary: x\nweights: {scheme: w8a8, method: %s}"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (W4 % "gptk", "weights.method: unknown method 'gptk', did you mean 'gptq'? known: rtn, gptq, awq"),
        (W4 % "{name: smoothquand}", "unknown method 'smoothquand', did you mean 'smoothquant'?"),
        (W4 % "{backend: gptqmodel}", "weights.method: is neither the name of a method nor a mapping with `name`"),
        (W4 % "3", "weights.method: is neither the name of a method nor a mapping with `name`; known: rtn, gptq"),
        (W4 % "{name: gptq, dampning: 0.1}", "weights.method.gptq.dampning: unknown key, did you mean 'damping'?"),
        (W4 % "{name: awq, alpha: 0.5}", "weights.method.awq.alpha: unknown key, known: name, backend, grid_points"),
        (W4 % "{name: gptq, backend: gptqmodle}", "weights.method.gptq.backend: did you mean 'gptqmodel'?"),
        (
            W4 % "{name: awq, backend: auto-gptq}",
            "should be 'llmcompressor', 'gptqmodel' or 'autoawq', not 'auto-gptq'",
        ),
        (W4 % "{name: rtn, backend: llmcompressor}", "Input should be 'mvquant', not 'llmcompressor'"),
        (W4 % "{name: gptq, damping: 0}", "weights.method.gptq.damping: Input should be greater than 0"),
        (
            W8A8 % "{name: smoothquant, alpha: 1.5}",
            "weights.method.smoothquant.alpha: Input should be less than or equal",
        ),
        (W4 % "smoothquant", "smoothquant makes activations easy to round, and w4a16 rounds none: use w8a8"),
        (W8A8 % "awq", "awq rounds weights only, not activations (w8a8): use smoothquant, gptq or rtn"),
        (W8A8 % "autoround", "autoround rounds weights only, not activations (w8a8)"),
        (W8A8 % "{name: gptq, backend: gptqmodel}", "gptqmodel rounds weights only, not activations (w8a8)"),
        (W8A8 % "{name: gptq, backend: auto-gptq}", "auto-gptq rounds weights only, not activations (w8a8)"),
        (W4 % "{name: awq, backend: autoawq}", "autoawq does 4 bits with zero points only, not w4a16: use w4a16-asym"),
        ("summary: x\nweights: {scheme: {bits: 8, activations: token}}", "one group a row (group_size -1)"),
        ("summary: x\nweights: {scheme: {bits: 4, group_size: -1, activations: token}}", "symmetric 8-bit weights"),
        ("summary: x\nweights: {scheme: {bits: 8, group_size: -1, activations: tokn}}", "did you mean 'token'?"),
        ("summary: x\nweights: {scheme: w8a8-statik}", "did you mean 'w8a8-static'?"),
        ("summary: x\nweights: {scheme: w8a8}\ncalibration: {chat: alwys}", "Input should be 'auto' or 'never'"),
        (
            "summary: x\nweights: {scheme: w8a8}\ncalibration: {colum: a}",
            "calibration.colum: unknown key, did you mean",
        ),
    ],
)
def test_a_mistake_about_methods_activations_or_data_is_explained(text, mistake):
    with pytest.raises(ConfigError) as error:
        parse_recipe(text, "mine.yaml")
    assert mistake in str(error.value)


def test_mistakes_of_a_method_are_reported_with_all_others():
    text = "weights: {scheme: w4a16, method: {name: gptq, dampning: 1, backend: x}, ignor: []}\ncalibration: {seed: a}"
    with pytest.raises(ConfigError) as error:
        parse_recipe(text, "mine.yaml")
    assert len(error.value.mistakes) == 5


def test_a_method_is_a_name_or_a_mapping():
    named, mapped = (parse_recipe(W4 % method, "t") for method in ("gptq", "{name: gptq}"))
    assert named == mapped
    assert named.method == Gptq()
    assert parse_recipe(W4 % "{name: gptq, damping: 0.1}", "t").method == Gptq(damping=0.1)
    assert parse_recipe("summary: x\nkv_cache: {keys: {bits: 2}}", "t").method == Rtn()


@pytest.mark.parametrize(
    ("weights", "calibrates"),
    [
        ("{scheme: w4a16}", False),
        ("{scheme: w8a8}", False),
        ("{scheme: w8a8-static}", True),
        ("{scheme: w8a8, method: smoothquant}", True),
        ("{scheme: w4a16, method: gptq}", True),
    ],
)
def test_what_calibrates_weights_needs_text_and_no_statistics(weights, calibrates):
    recipe = parse_recipe(f"summary: x\nweights: {weights}", "t")
    assert recipe.calibrates_weights == recipe.needs_calibration == calibrates
    assert not recipe.needs_statistics
    assert not recipe.needs_rope


def test_rows_protected_from_rounded_activations_stay_as_they_are():
    protected = "summary: x\nweights: {scheme: w8a8}\nprotect: {policy: massive, pairs: 0.1}"
    assert parse_recipe(protected, "t").protected_scheme.name == "bf16"
    assert parse_recipe(f"{protected[:-1]}, scheme: w8a16-row}}", "t").protected_scheme.name == "w8a16-row"


@pytest.mark.parametrize(
    "text",
    [
        W4 % "{name: gptq, damping: 0.02}",
        W4 % "gptq",
        W8A8 % "{name: smoothquant, alpha: 0.7}",
        W4 % "{name: autoround, iterations: 3}",
        W4 % "rtn",
        "summary: x\nweights: {scheme: w8a8-static}\ncalibration: {source: a:b, split: c, column: d, chat: never}",
    ],
)
@pytest.mark.parametrize("defaults", [True, False], ids=["without defaults", "whole"])
def test_a_recipe_that_is_written_reads_back_equal(text, defaults):
    recipe = parse_recipe(text, "t")
    assert Recipe.model_validate(recipe.model_dump(mode="json", exclude_defaults=defaults)) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json(exclude_defaults=defaults)) == recipe


def test_what_is_new_and_not_asked_for_is_not_written():
    """Fingerprints of older results are of the recipe as it was written then."""
    written = parse_recipe("summary: x\nweights: {scheme: w4a16}", "t").model_dump()
    assert set(written["calibration"]) == {"source", "sequences", "length", "seed"}
    assert set(written["weights"]["scheme"]) == {"bits", "group_size", "symmetric"}
