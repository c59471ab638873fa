import pytest

from mvquant.errors import ConfigError, UnknownNameError
from mvquant.named_schemes import COMMON_SCHEMES, is_scheme, recipe_for_scheme, scheme_summaries
from mvquant.recipe import load_recipe, recipe_paths
from mvquant.scheme import SCHEME_NAMES


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_a_shipped_recipe_is_what_the_scheme_of_its_name_stands_for(name):
    shipped, made = load_recipe(name), recipe_for_scheme(name)
    assert shipped.weights == made.weights
    assert shipped.protect.policy == made.protect.policy
    assert shipped.protect.pairs == made.protect.pairs
    assert shipped.protected_scheme == made.protected_scheme
    assert shipped.kv_cache == made.kv_cache
    assert shipped.fold == made.fold
    assert shipped.summary == made.summary


def test_every_weight_scheme_can_be_asked_for_alone_and_protected():
    for name in SCHEME_NAMES:
        if name != "bf16":
            assert recipe_for_scheme(name).weights.scheme.name == name
            assert recipe_for_scheme(f"mv-protect-{name}").protect.policy == "massive"
    assert set(COMMON_SCHEMES) < set(scheme_summaries())


def test_protected_rows_get_eight_bits_in_groups_like_the_others():
    assert recipe_for_scheme("mv-protect-w3a16-g32-asym").protected_scheme.name == "w8a16-g32-asym"


@pytest.mark.parametrize("name", sorted({*scheme_summaries(), *COMMON_SCHEMES}))
def test_every_name_that_is_listed_can_be_asked_for(name):
    assert is_scheme(name)
    assert recipe_for_scheme(name).summary


def test_a_cache_is_asked_for_alone_or_with_weights():
    alone, both = recipe_for_scheme("mv-protect-k2.25v4"), recipe_for_scheme("mv-protect-w3a16-g64-k3")
    assert alone.weights is None
    assert (alone.kv_cache.keys.bits, alone.kv_cache.values.bits) == (2.25, 4)
    assert alone.kv_cache.keys.policy == "sensitivity"
    assert both.weights.scheme.name == "w3a16-g64"
    assert both.protect.policy == "massive"
    assert both.kv_cache.values.bits == 16
    assert recipe_for_scheme("mv-protect").kv_cache is None
    assert recipe_for_scheme("w4a16-k2").kv_cache.keys.policy == "none"


@pytest.mark.parametrize(
    "name",
    ["", "k9", "k0.5", "k", "-k2", "k2v5", "w4a16k2", "w4a16-", "mv-protectk2", "mv-protect-", "bf16", "bf16-k2"],
)
def test_what_is_no_name_is_refused(name):
    assert not is_scheme(name)
    with pytest.raises(UnknownNameError, match="unknown scheme"):
        recipe_for_scheme(name)


def test_a_method_is_named_before_the_weights():
    recipe = recipe_for_scheme("mv-protect-gptq-w3a16-k2")
    assert (recipe.method.name, recipe.weights.scheme.name) == ("gptq", "w3a16")
    assert (recipe.protect.policy, recipe.protected_scheme.name) == ("massive", "w8a16")
    assert recipe.kv_cache.keys.bits == 2
    assert "by GPTQ" in recipe.summary
    plain = recipe_for_scheme("awq-w4a16-g64-asym")
    assert (plain.method.name, plain.weights.scheme.name, plain.protect.policy) == ("awq", "w4a16-g64-asym", "none")
    assert recipe_for_scheme("w4a16").method.name == "rtn"


@pytest.mark.parametrize("name", ["w8a8", "w8a8-static", "smoothquant-w8a8", "gptq-w8a8-static"])
def test_activations_are_rounded_by_name(name):
    plain, protected = recipe_for_scheme(name), recipe_for_scheme(f"mv-protect-{name}")
    assert plain.weights.scheme.activations == ("tensor" if name.endswith("static") else "token")
    assert protected.weights == plain.weights
    assert protected.protected_scheme.name == "bf16"
    assert "8-bit activations" in plain.summary


@pytest.mark.parametrize("name", ["gptq", "gptq-k2", "rtn-w4a16", "gptqw4a16", "gptq-mv-protect-w4a16", "gptq-bf16"])
def test_a_method_needs_weights_and_its_own_place(name):
    assert not is_scheme(name)
    with pytest.raises(UnknownNameError, match="unknown scheme"):
        recipe_for_scheme(name)
    with pytest.raises(UnknownNameError, match="did you mean 'gptq-w4a16'"):
        recipe_for_scheme("gptg-w4a16")


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("smoothquant-w4a16", "w4a16 rounds none: use w8a8"),
        ("mv-protect-awq-w8a8", r"awq rounds weights only, not activations \(w8a8\)"),
        ("autoround-w8a8-static-k2", "autoround rounds weights only"),
    ],
)
def test_what_a_method_cannot_do_is_explained(name, mistake):
    assert not is_scheme(name)
    with pytest.raises(ConfigError, match=mistake):
        recipe_for_scheme(name)
