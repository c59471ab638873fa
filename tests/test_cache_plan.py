"""Cache plans: every mistake is named, files come back, and bytes add up."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys, check_cache_plan_fits, load_cache_plan
from mvquant.errors import ConfigError, PlanError
from mvquant.heads import HeadRows


def plan_of(*heads: tuple[int, ...], layers: int = 1, **changes: object) -> CachePlan:
    keys = tuple(HeadKeys(bits=bits) for bits in heads)
    fields = {"head_dim": 8, "rotary_dim": 8, "layers": tuple(LayerKeys(layer=n, heads=keys) for n in range(layers))}
    return CachePlan.model_validate({**fields, **changes})


def k_rows(**changes: object) -> HeadRows:
    fields = {"module": "k_proj", "role": "k", "heads": 2, "head_dim": 8, "rotary_dim": 8}
    return HeadRows.model_validate({**fields, **changes})


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ValidationError) as error:
        plan_of((2, 2, 9, 0), (2, 2), values=ValueFormat(bits=4, group_size=3))
    text = str(error.value)
    assert "head 0: [0, 9] bits are out of range" in text
    assert "head 1: bits for 2 pairs, a head of 8 dims has 4" in text
    assert "values.group_size 3 does not divide head_dim 8" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": "channel", "chunk": 12}, "multiple of 8"),
        ({"scales": "static", "chunk": 32}, "leave it at 1"),
        ({"scales": "token", "scale_bits": 8}, "16 bits"),
    ],
)
def test_formats_that_contradict_themselves_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        KeyFormat.model_validate(fields)


def test_measured_formats_want_tables_for_every_dim():
    with pytest.raises(ValidationError, match="center and spread must have 8 entries"):
        plan_of((2, 2, 2, 2), keys=KeyFormat(scales="static"))


@pytest.mark.parametrize("head", [(8, 4, 2, 2), (1, 1, 1, 1), (16, 16, 3, 5)])
def test_average_bits_are_the_mean_over_heads_and_pairs(head: tuple[int, ...]):
    plan = plan_of(head, (2, 2, 2, 2), layers=3)
    assert plan.average_bits == pytest.approx((sum(head) / 4 + 2) / 2)


def test_bits_per_value_count_scales_and_what_waits_in_full_precision():
    plan = plan_of((2, 2, 2, 2), keys=KeyFormat(chunk=32))
    assert plan.key_bits_per_value() == 2 + 32 / 32  # two float16 for 32 values
    waiting = 31 / 2
    expected = (waiting * 16 + (1000 - waiting) * 3) / 1000
    assert plan.key_bits_per_value(context=1000) == pytest.approx(expected)
    longer = plan.model_copy(update={"sinks": 4, "window": 64})
    expected = ((waiting + 64 + 4) * 16 + (1000 - waiting - 64) * 3) / 1000  # sinks are there twice
    assert longer.key_bits_per_value(context=1000) == pytest.approx(expected)


def test_bits_per_value_of_tables_vanish_with_context():
    tables = tuple([1.0] * 8)
    heads = (HeadKeys(bits=(2,) * 4, center=tables, spread=tables),)
    layers = (LayerKeys(layer=0, heads=heads),)
    plan = CachePlan(head_dim=8, rotary_dim=8, keys=KeyFormat(scales="static"), layers=layers)
    assert plan.key_bits_per_value() == 2
    assert plan.key_bits_per_value(context=64) == 2 + 2 * 16 / 64


def test_a_short_context_is_all_in_full_precision():
    plan = plan_of((2, 2, 2, 2), window=8, keys=KeyFormat(chunk=32), values=ValueFormat(bits=4))
    assert (plan.key_bits_per_value(context=8), plan.value_bits_per_value(context=8)) == (16, 16)


def test_values_do_not_wait_for_the_chunks_of_keys():
    plan = plan_of((2, 2, 2, 2), keys=KeyFormat(chunk=32), values=ValueFormat(bits=4, group_size=-1))
    assert plan.value_bits_per_value(context=1000) == plan.value_bits_per_value() == 4 + 32 / 8


def test_what_is_not_rounded_has_no_sinks_beside_it():
    plan = plan_of((16,) * 4, sinks=4, window=9, keys=KeyFormat(chunk=32))
    assert (plan.key_bits_per_value(context=100), plan.value_bits_per_value(context=100)) == (16, 16)


def test_values_count_their_scales():
    plan = plan_of((2, 2, 2, 2), values=ValueFormat(bits=4, group_size=4))
    assert plan.value_bits_per_value() == 4 + 32 / 4


def test_saved_plans_come_back(tmp_path: Path):
    plan = plan_of((2, 3, 4, 8), (1, 1, 1, 16), layers=2, sinks=4, values=ValueFormat(bits=3))
    plan.save(tmp_path / "plan.json")
    assert load_cache_plan(tmp_path / "plan.json") == plan


def test_the_hash_is_of_the_decision_alone():
    plan = plan_of((2, 2, 2, 2))
    assert plan.model_copy(update={"policy": "massive"}).hash == plan.hash
    assert plan.model_copy(update={"sinks": 1}).hash != plan.hash


def test_edited_files_name_their_mistakes(tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_text('{"head_dim": 8, "rotary_dim": 8, "sink": 2, "layers": [{"layer": 0, "heads": [{"bits": [2]}]}]}')
    with pytest.raises(ConfigError, match="sink: Extra inputs") as error:
        load_cache_plan(path)
    assert error.value.where == str(path)
    with pytest.raises(PlanError, match="cannot read the cache plan"):
        load_cache_plan(tmp_path / "none.json")


def test_a_plan_fits_its_model():
    check_cache_plan_fits(plan_of((2,) * 4, (2,) * 4, layers=2), [k_rows(), k_rows()])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([k_rows()], "layers"),
        ([k_rows(), k_rows(heads=4)], "4 KV heads, the plan 2"),
        ([k_rows(), k_rows(head_dim=16)], "head_dim 16"),
        ([k_rows(), k_rows(rotary_dim=4)], "rotary_dim 4"),
        ([k_rows(), k_rows(layout="interleaved")], "interleaved"),
        ([k_rows(), k_rows(rotary_dim=0)], "does not use RoPE"),
    ],
)
def test_a_plan_for_another_model_is_refused(rows: list[HeadRows], message: str):
    with pytest.raises(PlanError, match=message):
        check_cache_plan_fits(plan_of((2,) * 4, (2,) * 4, layers=2), rows)
