import pytest

from mvquant.errors import UnknownNameError
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
