import json

import pytest
from pydantic import ValidationError

from mvquant.cache_formats import KeyFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys
from mvquant.errors import ConfigError, PlanError
from mvquant.heads import HeadRows
from mvquant.method_settings import Awq, Gptq, Rtn, SmoothQuant
from mvquant.named_schemes import recipe_for_scheme
from mvquant.plan import CalibrationRecord, ModulePlan, Plan, Protection, check_plan_fits, load_plan
from mvquant.recipe import Recipe, Weights
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


W8A8, STATIC = (WeightScheme.model_validate(name) for name in ("w8a8", "w8a8-static"))
RECORD = CalibrationRecord(source="t", sequences=1, length=8, seed=0, hash="a")


def made_by(method, scheme="w4a16", **changes):
    """A plan for a method; by default on the modules of all others."""
    weights = Weights(scheme=WeightScheme.model_validate(scheme), method=method)
    recipe = Recipe(summary="t", weights=weights)
    return plan(**{"recipe": recipe, "calibration": RECORD, **changes})


def test_the_hash_covers_the_settings_of_a_method_and_the_text_it_saw():
    other_text = RECORD.model_copy(update={"hash": "b"})
    plans = [
        made_by(Rtn()),
        made_by(Gptq()),
        made_by(Gptq(damping=0.02)),
        made_by(Gptq(backend="gptqmodel")),
        made_by(Awq()),
        made_by(Gptq(), calibration=other_text),
    ]
    assert len({each.hash for each in plans}) == len(plans)
    assert made_by(Gptq(), calibration=RECORD.model_copy(update={"source": "elsewhere"})).hash == made_by(Gptq()).hash


def test_hashes_of_plans_that_round_to_nearest_are_what_they_were():
    """Whatever text their statistics come from; the value is that of version 0.1 before there were methods."""
    assert plan().hash == "1b51e5553acbffc8d06c24390da9c2765e06e9878c588d75abbef809478c758b"
    assert made_by(Rtn()).hash == plan().hash
    assert made_by(Rtn(), calibration=None).hash == plan().hash
    assert cached().hash == "09d3b88298dd93f8358b2e119182eec2436a7c4e5ce0cdb9285e788658c218dc"


def test_static_activations_are_of_the_text_too():
    other_text = RECORD.model_copy(update={"hash": "b"})
    modules = (module(scheme=STATIC, protected=(), protected_scheme=None),)
    static = [made_by(Rtn(), "w8a8-static", modules=modules, calibration=record) for record in (RECORD, other_text)]
    assert static[0].hash != static[1].hash
    with pytest.raises(ValidationError, match="rtn needs text, and `calibration` does not say which"):
        made_by(Rtn(), "w8a8-static", modules=modules, calibration=None)
    with pytest.raises(ValidationError, match="gptq needs text"):
        made_by(Gptq(), calibration=None)


@pytest.mark.parametrize(("scheme", "extra"), [(W8A8, 0), (STATIC, 1)], ids=lambda value: getattr(value, "name", value))
def test_bytes_of_rounded_activations_are_those_of_the_weights_and_one_scale(scheme, extra):
    alone = module(scheme=scheme, protected=(), protected_scheme=None)
    for float_bits in (16, 32):
        scale = float_bits // 8
        assert alone.bytes_after(float_bits) == 16 * 64 + 16 * scale + extra * scale
    kept = module(scheme=scheme, protected_scheme=WeightScheme(bits=16))
    assert kept.bytes_after(16) == 10 * 64 + 10 * 2 + 6 * 64 * 2 + 6 * 4 + extra * 2
    assert plan(alone).bits_per_weight == pytest.approx(8 + 16 / 64 + extra * 16 / (16 * 64))


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"scheme": W8A8, "protected_scheme": W8A8}, "protected rows get 8 bits, not more than the others"),
        ({"scheme": W4, "protected_scheme": W8A8}, "protected rows see activations as they come, not as w8a8"),
        (
            {"scheme": W8A8, "kind": "experts", "shape": (2, 8, 64), "protected": (), "protected_scheme": None},
            "k: activations of experts cannot be rounded; leave out experts: `ignore: ",
        ),
    ],
)
def test_rounded_activations_that_cannot_be_are_refused(changes, mistake):
    with pytest.raises(ValidationError, match=mistake):
        module(**changes)


@pytest.mark.parametrize("kept", ["bf16", "w8a16-row", "w8a16-g32"])
def test_rows_protected_from_rounded_activations_may_have_as_many_bits(kept):
    assert module(scheme=W8A8, protected_scheme=WeightScheme.model_validate(kept)).protected_rows


@pytest.mark.parametrize("method", [Rtn(), Gptq(), Gptq(damping=0.1), Awq(), SmoothQuant()], ids=repr)
def test_a_plan_with_a_method_reads_back_equal(method, tmp_path):
    made = made_by(method, "w8a8" if method.name == "smoothquant" else "w4a16")
    made.save(tmp_path / "plan.json")
    read = load_plan(tmp_path / "plan.json")
    assert read == made
    assert read.recipe.method == method
    assert Plan.model_validate(made.model_dump(mode="json", exclude_defaults=True)) == made
