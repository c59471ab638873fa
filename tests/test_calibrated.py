"""Calibrated methods from plan to checkpoint: the plan's own text, nothing lost by interruptions, a log."""

import importlib.util
import json
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from pydantic import TypeAdapter

from mvquant import calibrated, method_backends, pipeline
from mvquant.arch import model_view
from mvquant.backends import registry
from mvquant.calibrated import calibrated_weights, record_of
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.errors import BackendError, PlanError, UnsupportedModelError, UsageError
from mvquant.folding import folded_parameters, load_folded, recorded_scales
from mvquant.layerwise import ALONE, Room
from mvquant.layerwise.log import LOG_FILE
from mvquant.method_backends import LAYER_BACKENDS, require_method
from mvquant.method_settings import Method
from mvquant.plan import load_plan
from mvquant.policies import make_plan
from mvquant.recipe import Calibration, Recipe, Weights
from mvquant.scheme import WeightScheme
from mvquant.stats import collect_stats, token_hash
from mvquant.workplace import HERE, Workplace, work_folder
from tests.layerwise.examples import StoppedError, batches
from tests.tiny_models import tiny_model

CALIBRATION = Calibration(sequences=3, length=64)
STATIC = Recipe(
    summary="t", weights=Weights(scheme=WeightScheme.model_validate("w8a8-static")), calibration=CALIBRATION
)


@pytest.fixture(scope="module")
def opened():
    return pipeline.open_model("reference")


@pytest.fixture(scope="module")
def plan(opened):
    return pipeline.plan_model("reference", STATIC, opened)


@pytest.fixture
def backend(monkeypatch):
    """Have plain rounding done by a backend of the tests."""

    def use(name):
        monkeypatch.setitem(LAYER_BACKENDS, ("rtn", "mvquant"), f"tests.layerwise.examples:{name}")

    return use


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOG_FILE}


def log_of(folder):
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def test_a_plan_for_calibrated_weights_names_its_text_and_measures_nothing(plan, opened, monkeypatch):
    monkeypatch.setattr("mvquant.quantizing.layerwise_stats", None)
    again = pipeline.plan_model("reference", STATIC, opened)
    _, batches = pipeline.calibration_tokens("reference", opened, CALIBRATION)
    assert again.calibration.hash == token_hash(batches) == plan.calibration.hash
    assert (again.calibration.source, again.calibration.sequences, again.calibration.length) == ("reference", 3, 64)


def test_the_checkpoint_says_what_it_was_made_with(plan, opened, tmp_path, monkeypatch):
    monkeypatch.setattr("mvquant.method_backends.registry.require", lambda _name: {"some-package": "1.2"})
    said = []
    pipeline.quantize(opened, plan, tmp_path / "out", note=said.append)
    header, *modules = log_of(tmp_path / "out")
    assert (header["method"], header["backend"], header["settings"]) == ("rtn", "mvquant", {})
    assert header["versions"]["some-package"] == "1.2"
    assert header["versions"]["torch"] == torch.__version__
    assert header["plan"] == plan.hash
    assert header["calibration"]["hash"] == plan.calibration.hash
    assert [record["module"] for record in modules] == [module.name for module in plan.modules]
    assert all(record["tokens"] == 3 * 64 for record in modules)
    written = load_plan(tmp_path / "out" / "plan.json")
    assert written.made_with["some-package"] == "1.2"
    assert written.hash == plan.hash
    assert "of memory" in said[0]
    assert not work_folder(tmp_path / "out").exists()


def test_text_that_changed_since_the_plan_is_refused(opened, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the river runs. " * 200)
    recipe = STATIC.model_copy(update={"calibration": CALIBRATION.model_copy(update={"source": str(text)})})
    plan = pipeline.plan_model("reference", recipe, opened)
    text.write_text("the river ran away. " * 200)
    with pytest.raises(PlanError, match=r"text\.txt.*plan again"):
        pipeline.quantize(pipeline.open_model("reference"), plan, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_an_interrupted_run_is_refused_then_resumed_to_the_same_bytes(plan, opened, tmp_path, backend):
    pipeline.quantize(opened, plan, tmp_path / "whole")
    backend("StopsOnce")
    with pytest.raises(StoppedError):
        pipeline.quantize(opened, plan, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.work", "whole"]
    with pytest.raises(UsageError, match=r"out\.work holds an interrupted quantization \(2 layers done\).*--resume"):
        pipeline.quantize(opened, plan, tmp_path / "out")
    said = []
    place = pipeline.Workplace(resume=True)
    pipeline.quantize(opened, plan, tmp_path / "out", place=place, note=said.append)
    assert any("going on after layer 2 of 4" in sentence for sentence in said)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert [line.get("module") for line in log_of(tmp_path / "out")] == [
        line.get("module") for line in log_of(tmp_path / "whole")
    ]
    assert not work_folder(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "value", "named"),
    [
        ("mvquant.calibrated.folder_hash", lambda _folder: "other", "the model"),
        (
            "mvquant.method_backends.registry.require",
            lambda _name: {"some-package": "2"},
            r"some-package \(None, now 2\)",
        ),
        ("mvquant.calibrated.version", lambda name: "0", r"torch \(.*, now 0\)"),
        ("torch.get_num_threads", lambda: 99, r"threads \(1, now 99\)"),
    ],
)
def test_work_that_was_begun_otherwise_is_not_resumed(
    target, value, named, plan, opened, tmp_path, backend, monkeypatch
):
    backend("StopsOnce")
    with pytest.raises(StoppedError):
        pipeline.quantize(opened, plan, tmp_path / "out")
    monkeypatch.setattr(target, value)
    with pytest.raises(UsageError, match=f"cannot be resumed.*{named}"):
        pipeline.quantize(opened, plan, tmp_path / "out", place=pipeline.Workplace(resume=True))


def test_another_text_or_plan_is_not_resumed(plan, opened, tmp_path, backend):
    backend("StopsOnce")
    with pytest.raises(StoppedError):
        pipeline.quantize(opened, plan, tmp_path / "out")
    seed = STATIC.model_copy(update={"calibration": CALIBRATION.model_copy(update={"seed": 1})})
    other = pipeline.plan_model("reference", seed, opened)
    with pytest.raises(UsageError, match="the plan, the calibration text"):
        pipeline.quantize(opened, other, tmp_path / "out", place=pipeline.Workplace(resume=True))


def test_what_does_not_fit_is_refused_before_any_work(plan, opened, tmp_path, monkeypatch):
    monkeypatch.setattr("mvquant.preflight.available_room", lambda *_: Room(memory=1000, disk=10**15))
    with pytest.raises(UsageError, match="of memory at the peak"):
        pipeline.quantize(opened, plan, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_packages_that_take_whole_models_work_in_one_process(plan, opened, tmp_path, monkeypatch):
    class Two(type(ALONE)):
        size = 2

    monkeypatch.delitem(LAYER_BACKENDS, ("rtn", "mvquant"))
    with pytest.raises(UsageError, match="without torchrun"):
        pipeline.quantize(opened, plan, tmp_path / "out", place=pipeline.Workplace(processes=Two()))


def test_more_processes_than_sequences_are_refused_before_any_work(plan, opened, tmp_path, monkeypatch):
    class Four(type(ALONE)):
        size = 4

    monkeypatch.setattr("mvquant.method_backends.registry.require", None)
    with pytest.raises(UsageError, match="4 processes cannot share 3 calibration sequences"):
        pipeline.quantize(opened, plan, tmp_path / "out", place=pipeline.Workplace(processes=Four()))
    assert not list(tmp_path.iterdir())


def test_a_package_that_cannot_use_the_device_runs_on_the_cpu_and_says_so(opened, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("mvquant.preflight.available_room", lambda *each: asked.append(each) or Room(10**15, 10**15))
    weights = Weights.model_validate({"scheme": "w4a16", "method": {"name": "gptq", "backend": "auto-gptq"}})
    recipe = Recipe(summary="t", weights=weights)
    text = record_of(batches(), "t", 0)
    plan = make_plan(opened.view, recipe, model="t", dtype="bfloat16", calibration=text)
    said = []
    place = calibrated._usable_by_package(Workplace(device=torch.device("cuda")), recipe.method, said.append)
    said.append(Workplace(device=torch.device("cuda")).preflight(plan, opened.view, batches(), tmp_path))
    assert asked == [(torch.device("cpu"), tmp_path, 1)]
    assert said[0] == "auto-gptq runs on the CPU: it cannot use cuda"
    assert "auto-gptq holds the whole model" in said[1]
    assert calibrated._made_with(opened.checkpoint, plan, {}, place)["device"] == "cpu"


def test_what_no_plan_would_change_is_refused_before_anything_is_measured(opened, tmp_path, monkeypatch):
    view, work = opened.view, tmp_path / "out.work"
    method = TypeAdapter(Method).validate_python
    missing = replace(registry.state("gptqmodel"), missing=("gptqmodel",))
    with monkeypatch.context() as patches:
        patches.setattr(registry, "state", lambda _name: missing)
        with pytest.raises(BackendError, match="gptqmodel"):
            require_method(method({"name": "gptq", "backend": "gptqmodel"}), view, work)
    with pytest.raises(UnsupportedModelError, match="auto-round does not quantize mixtral models"):
        require_method(method("autoround"), model_view(tiny_model("mixtral").config), work)
    with pytest.raises(UnsupportedModelError, match="olmo2"):
        require_method(method("smoothquant"), model_view(tiny_model("olmo2").config), work)
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        require_method(method("awq"), model_view(tiny_model("gpt2").config), work)
    with pytest.raises(UsageError, match="at least 3 exponents"):
        require_method(method({"name": "awq", "grid_points": 2}), view, work)
    assert not work.exists()


def test_versions_of_another_environment_do_not_pass_for_those_of_this_one(plan, opened, monkeypatch):
    found = {"auto-gptq": "0.7.1", "transformers": "4.53.3"}
    monkeypatch.setattr("mvquant.method_backends.registry.require", lambda _name: found)
    legacy, here = (method_backends.package_versions(name) for name in ("auto-gptq", "gptqmodel"))
    assert legacy == {"auto-gptq/auto-gptq": "0.7.1", "auto-gptq/transformers": "4.53.3"}
    assert here == found
    made_with = calibrated._made_with(opened.checkpoint, plan, legacy, HERE)["versions"]
    assert (made_with["transformers"], made_with["auto-gptq/transformers"]) == (version("transformers"), "4.53.3")


def test_every_layer_backend_can_be_made():
    sees_rounded = {"rtn": True, "gptq": True, "awq": False, "smoothquant": False}
    made = {}
    for method, _ in LAYER_BACKENDS:
        weights = (
            Weights(scheme=WeightScheme.model_validate("w8a8"), method={"name": method})
            if method != "awq"
            else (Weights(scheme=WeightScheme(bits=4), method={"name": method}))
        )
        made[method] = method_backends.layer_backend(weights.method).sees_rounded
    assert made == sees_rounded


def gptq_states(folder, plan):
    """What GPTQ makes of the model in a folder, by module."""
    checkpoint = open_checkpoint(str(folder))
    with calibrated_weights(checkpoint, model_view(checkpoint.config), plan, batches(), folder / "work") as made:
        return {module.name: made.results.state(module.name) for module in plan.modules}


@pytest.mark.skipif(importlib.util.find_spec("llmcompressor") is None, reason="llmcompressor is not installed")
def test_folding_by_the_plan_is_folding_the_weights_beforehand(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight[::5] *= 6.0
    model.save_pretrained(tmp_path / "plain")
    view = model_view(model.config)
    recipe = Recipe.model_validate(
        {"summary": "t", "weights": {"scheme": "w4a16-g32", "method": "gptq"}, "fold": {"strength": 0.5}}
    )
    stats = collect_stats(model, view, batches())
    plan = make_plan(view, recipe, model="t", dtype="float32", stats=stats)
    load_folded(model, folded_parameters(model, view, recorded_scales(plan.fold)))
    model.save_pretrained(tmp_path / "folded")
    by_plan = gptq_states(tmp_path / "plain", plan)
    unfolded = plan.model_copy(update={"fold": ()})
    beforehand, never = (gptq_states(tmp_path / name, unfolded) for name in ("folded", "plain"))
    for name, state in by_plan.items():
        assert state.keys() == beforehand[name].keys() != set()
        assert all(torch.equal(state[part], beforehand[name][part]) for part in state)
        if name.endswith(("q_proj", "k_proj")):
            assert any(not torch.equal(state[part], never[name][part]) for part in state)
