import pytest
from pydantic import ValidationError

from mvquant.cache_formats import KeyFormat
from mvquant.cache_recipe import Fold, KeyCache, KvCache


def test_keys_have_a_scale_per_channel_and_are_cached_before_rope_unless_told_otherwise():
    assert KeyCache(bits=2).format == KeyFormat(scales="channel", chunk=32, scale_bits=8, stage="pre-rope")
    assert KeyCache(bits=2, scales="static").format == KeyFormat(scales="static", chunk=1, stage="pre-rope")
    assert KeyCache(bits=2, scales="token", stage="post-rope").format == KeyFormat(scales="token")
    assert KeyCache(bits=2, scales="channel", chunk=64, scale_bits=16).format.chunk == 64


@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ({"bits": 0.5}, r"0\.5 is below what one bit per pair needs; choose 1 to 8, or 16"),
        ({"bits": 9}, "9 is out of range"),
        ({"bits": 2, "scales": "static", "chunk": 32}, "static scales encode every token alone"),
        ({"bits": 2, "scales": "channel", "chunk": 12}, "a multiple of 8"),
        ({"bits": 2, "scales": "token", "scale_bits": 8}, "stored in 16 bits"),
        ({"bits": 2, "policy": "massiv"}, "policy"),
        ({"bits": 2, "protected": 0}, "protected"),
        ({"bits": 2, "groups": 3}, "Extra inputs"),
    ],
)
def test_a_mistake_about_keys_is_explained(fields, mistake):
    with pytest.raises(ValidationError, match=mistake):
        KeyCache(**fields)


def test_all_mistakes_about_keys_are_reported_at_once():
    with pytest.raises(ValidationError) as error:
        KeyCache(bits=11, scales="static", chunk=16)
    assert "out of range" in str(error.value)
    assert "leave it at 1" in str(error.value)


def test_a_cache_that_rounds_nothing_is_refused():
    with pytest.raises(ValidationError, match="rounds nothing"):
        KvCache(sinks=4)
    assert KvCache(values={"bits": 4}).keys.bits == 16


@pytest.mark.parametrize("strength", [0, 1.5])
def test_a_strength_of_folding_is_a_share(strength):
    with pytest.raises(ValidationError):
        Fold(strength=strength)
