import json

import pytest
from pydantic import ValidationError

from mvquant.cache_formats import KeyFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.errors import ConfigError, PlanError
from mvquant.heads import HeadRows
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import ModulePlan, Plan, Protection, check_plan_fits, load_plan
from mvquant.scheme import WeightScheme

W4 = WeightScheme(bits=4, group_size=32)
W8 = WeightScheme(bits=8, group_size=32)
KEYS = HeadRows(module="k", role="k", heads=2, head_dim=8, rotary_dim=8)


def module(**changes):
    fields = {
        "name": "k",
        "layer": 0,
        "shape": (16, 64),
        "scheme": W4,
        "protected_scheme": W8,
        "protected": (Protection(heads=KEYS, pairs={0: (1,), 1: (0, 3)}),),
    }
    return ModulePlan(**{**fields, **changes})


def plan(*modules, **changes):
    fields = {
        "model": "tiny",
        "family": "llama",
        "dtype": "bfloat16",
        "recipe": recipe_for_scheme("mv-protect"),
        "modules": modules or (module(),),
        "kept_parameters": 100,
    }
    return Plan(**{**fields, **changes})


def test_protected_rows_are_both_rows_of_every_pair():
    assert module().protected_rows == (1, 5, 8, 11, 12, 15)


def test_bytes_count_integers_scales_and_row_indices():
    rows, protected, columns, groups = 16, 6, 64, 2
    base = (rows - protected) * (columns // 2 + groups * 2)
    kept = protected * (columns + groups * 2)
    assert module().bytes_after(float_bits=16) == base + kept + 4 * protected
    assert plan().bytes_after == module().bytes_after(16) + 200
    assert plan().bits_per_weight == pytest.approx(module().bytes_after(16) * 8 / (rows * columns))


def test_rows_kept_in_the_models_dtype_cost_its_bits():
    kept = module(protected_scheme=WeightScheme(bits=16))
    assert kept.bytes_after(32) == 10 * (32 + 2 * 4) + 6 * 64 * 4 + 24


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"shape": (16, 48)}, "k: group_size 32 does not divide its 48 columns; use -1"),
        ({"scheme": WeightScheme(bits=4, group_size=128)}, "does not divide its 64 columns; use 64 or 32 or -1"),
        ({"protected_scheme": None}, "go together"),
        ({"protected": ()}, "go together"),
        ({"protected_scheme": W4}, "get 4 bits, not more than the others"),
        ({"shape": (12, 64)}, "protected row 15 is outside its 12 rows"),
        ({"name": "q"}, "q: protects rows of another module"),
    ],
)
def test_a_module_plan_that_contradicts_itself_is_refused(changes, mistake):
    with pytest.raises(ValidationError, match=mistake):
        module(**changes)


@pytest.mark.parametrize("pairs", [{0: (4,)}, {2: (0,)}, {0: (1, 1)}])
def test_protected_pairs_must_be_inside_and_named_once(pairs):
    with pytest.raises(ValidationError, match=r"pair 4 is outside 0..3|head 2|twice"):
        Protection(heads=KEYS, pairs=pairs)


def test_a_saved_plan_reads_back_equal(tmp_path):
    plan().save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan()


def test_the_hash_is_of_the_decision_alone():
    same = plan(module(reason="because"), model="elsewhere", made_with={"torch": "9"})
    other = plan(module(protected=(Protection(heads=KEYS, pairs={0: (1,), 1: (0, 2)}),)))
    assert plan().hash == same.hash
    assert plan().hash != other.hash


def test_a_plan_edited_by_hand_is_checked(tmp_path):
    path = tmp_path / "plan.json"
    plan().save(path)
    edited = json.loads(path.read_text())
    edited["modules"][0]["protected"][0]["pairs"]["0"] = [9]
    edited["modules"][0]["scheme"]["bits"] = 7
    path.write_text(json.dumps(edited))
    with pytest.raises(ConfigError) as error:
        load_plan(path)
    assert "pair 9 is outside 0..3" in str(error.value)
    assert "bits" in str(error.value)
    with pytest.raises(PlanError, match="make one with `mvquant plan`"):
        load_plan(tmp_path / "none.json")


CACHE = CachePlan(
    head_dim=8,
    rotary_dim=8,
    keys=KeyFormat(scales="token"),
    layers=(LayerKeys(layer=0, heads=(HeadKeys(bits=(2, 2, 4, 1)), HeadKeys(bits=(1, 1, 2, 2)))),),
)


def cached(**changes):
    return plan(**{"cache": CACHE, "fold": (((0.5, 2.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0)),), **changes})


def test_the_hash_covers_the_cache_how_it_is_used_and_what_is_folded():
    other = CACHE.model_copy(update={"sinks": 1})
    plans = [
        plan(),
        cached(),
        cached(cache=other),
        cached(fold=()),
        cached(prefill="exact"),
        cached(round_queries=True),
    ]
    assert len({each.hash for each in plans}) == len(plans)
    assert cached(cache=CACHE.model_copy(update={"policy": "by hand"})).hash == cached().hash


def test_bits_of_cached_values_are_those_of_the_cache_over_the_training_context():
    bits = cached(training_context=64).cached_bits
    assert bits.keys == CACHE.key_bits_per_value(64)
    assert bits.values == 16
    assert bits.average == (bits.keys + 16) / 2
    assert plan().cached_bits is None


def test_a_plan_of_the_cache_alone_leaves_the_weights_at_their_dtype():
    alone = cached().model_copy(update={"modules": ()})
    assert alone.bits_per_weight == 16
    assert alone.bytes_after == alone.bytes_before == 200
    check_plan_fits(alone, {"anything": (16, 64)})


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"modules": ()}, "the plan quantizes nothing"),
        ({"prefill": "exact"}, "the plan has no `cache`"),
        ({"round_queries": True}, "the plan has no `cache`"),
        ({"fold": (((float("nan"),),),)}, "finite"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changes, mistake):
    fields = plan().model_dump() | changes
    with pytest.raises(ValidationError, match=mistake):
        Plan.model_validate(fields)


def test_a_saved_plan_keeps_numbers_in_a_row_and_reads_back_equal(tmp_path):
    path = tmp_path / "plan.json"
    made = cached(model="two\nlines [\n1\n]")
    made.save(path)
    lines = path.read_text().splitlines()
    assert any(line.strip() == '"bits": [2, 2, 4, 1]' for line in lines)
    assert any(line.strip() == "[0.5, 2.0, 1.0, 1.0]," for line in lines)
    assert load_plan(path) == made


def test_a_cache_edited_by_hand_is_checked(tmp_path):
    path = tmp_path / "plan.json"
    cached().save(path)
    edited = json.loads(path.read_text())
    edited["cache"]["layers"][0]["heads"][1]["bits"] = [1, 9, 2]
    path.write_text(json.dumps(edited))
    with pytest.raises(ConfigError) as error:
        load_plan(path)
    assert "layer 0, head 1: bits for 3 pairs, a head of 8 dims has 4" in str(error.value)
    assert "[9] bits are out of range" in str(error.value)


def test_a_plan_for_another_model_is_refused():
    check_plan_fits(plan(), {"k": (16, 64), "q": (16, 64)})
    with pytest.raises(PlanError, match="matches no module"):
        check_plan_fits(plan(), {"q": (16, 64)})
    with pytest.raises(PlanError, match=r"is \(16, 32\) in the model"):
        check_plan_fits(plan(), {"k": (16, 32)})
    with pytest.raises(PlanError, match="names one twice"):
        check_plan_fits(plan(module(), module()), {"k": (16, 64)})
