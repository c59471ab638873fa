import pytest

from mvquant.errors import ConfigError, UnknownNameError
from mvquant.named_schemes import recipe_for_scheme
from mvquant.recipe import load_recipe, parse_recipe, recipe_paths
from mvquant.scheme import SCHEME_NAMES, WeightScheme

SHIPPED = [
    *(f"{prefix}w{bits}a16" for prefix in ("", "mv-protect-") for bits in (8, 4, 3, 2)),
    *("k2", "mv-protect-k2", "mv-protect-w4a16-k2"),
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
