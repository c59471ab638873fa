"""auto-gptq in an environment of its own: what is refused, and, where it is installed, what it gives."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mvquant.arch import model_view
from mvquant.backends.auto_gptq import adapter
from mvquant.backends.environments import environment_folder, environment_python, is_current
from mvquant.backends.folder import run
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.errors import BackendError, CheckpointError, PlanError, UnsupportedModelError
from mvquant.methods import apply_plan
from mvquant.plan import CalibrationRecord
from mvquant.policies import make_plan
from mvquant.quant import unpack
from mvquant.recipe import Recipe
from mvquant.stats import collect_stats
from tests.tiny_models import tiny_model, tiny_tokens

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
BATCHES = [tokens[None] for tokens in tiny_tokens(8, 96)]
MEASURED_ON = CalibrationRecord(source="tiny", sequences=8, length=96, seed=0, hash="")
TOKENS = tiny_tokens(2, 40, seed=5)
RELOADED = [
    ("llama", "w4a16-g32"),
    ("llama", "w3a16-g32-asym"),
    ("llama", "w8a16-row"),
    ("mistral", "w2a16-g64"),
    ("qwen2", "w4a16-g32-asym"),
    ("gpt_neox", "w4a16-row-asym"),
    ("opt", "w8a16-g32-asym"),
]

needs_environment = [
    pytest.mark.backend,
    pytest.mark.skipif(not is_current("auto-gptq"), reason="mvquant backends install auto-gptq"),
]


class World:
    """A tiny model on disk, plans for it, and what auto-gptq makes of it."""

    def __init__(self, folder: Path, family: str, **changes):
        tiny_model(family, dtype=torch.bfloat16, **changes).save_pretrained(folder / "model")
        self.work = folder / "work"
        self.checkpoint = open_checkpoint(str(folder / "model"))
        self.view = model_view(self.checkpoint.config)

    def plan(self, scheme, *, ignore=(), **recipe):
        weights = {"scheme": scheme, "method": {"name": "gptq", "backend": "auto-gptq"}, "ignore": ignore}
        recipe = Recipe.model_validate({"summary": "a test", "weights": weights, **recipe})
        measures = recipe.protect.policy == "massive"
        stats = collect_stats(self.model(), self.view, BATCHES, source="tiny", seed=0) if measures else None
        return make_plan(
            self.view, recipe, model="tiny", dtype="bfloat16", stats=stats, calibration=None if stats else MEASURED_ON
        )

    def model(self):
        return AutoModelForCausalLM.from_pretrained(self.checkpoint.folder, dtype=torch.float32)

    def results(self, plan):
        place = self.work / str(len(list(self.work.glob("*"))))
        return run.run_folder_backend(self.checkpoint, self.view, plan, BATCHES, place)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return World(tmp_path_factory.mktemp("llama"), "llama", **ROPE)


def test_families_that_it_does_not_know_are_refused_before_any_work(tmp_path):
    world = World(tmp_path, "qwen3")
    with pytest.raises(UnsupportedModelError, match="auto-gptq does not quantize qwen3 models"):
        world.results(world.plan("w4a16-g32"))
    assert not world.work.exists()


def test_it_gets_one_scheme_and_modules_with_another_are_rounded_here(llama, tmp_path):
    plan = llama.plan("w4a16-g32", protect={"policy": "whole-module"})
    run.require_backend_fit(plan, llama.view)
    job = run.make_job(plan, llama.view, tmp_path)
    assert (job.scheme.name, job.other_schemes) == ("w4a16-g32", {})
    assert {name.rpartition(".")[2] for name in job.kept} == {"q_proj", "k_proj"}


def test_rows_that_do_not_fill_words_are_refused(tmp_path):
    world = World(tmp_path, "llama", intermediate_size=96 + 16, **ROPE)
    plan = world.plan("w4a16-row")
    with pytest.raises(PlanError, match=r"gate_proj: auto-gptq packs rows and columns by 32, and it has 112 rows"):
        run.require_backend_fit(plan, world.view)


def test_layers_of_two_kinds_are_refused(tmp_path):
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "use_sliding_window": True}
    world = World(tmp_path, "qwen2", **kinds)
    with pytest.raises(PlanError, match="one attention mask, and this model has two kinds"):
        run.require_backend_fit(world.plan("w4a16-g32"), world.view)


def test_the_source_folder_is_one_for_transformers_4(llama, tmp_path):
    llama.model().save_pretrained(tmp_path)
    adapter.prepare(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == 500000.0
    probe = load_file(tmp_path / "probe.safetensors")
    with torch.inference_mode():
        assert torch.equal(llama.model()(probe["tokens"]).logits, probe["logits"])


def test_a_model_that_gives_nan_is_refused(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="logits that are NaN or infinite"):
        adapter.prepare(tmp_path)


@pytest.fixture
def stand_in(monkeypatch):
    """Run some Python code as auto-gptq's child process."""

    def use(code):
        backend = adapter.FolderBackend(
            name="auto-gptq",
            families=adapter.FAMILIES,
            command=lambda *jobs: [sys.executable, "-I", "-c", code, *map(str, jobs)],
            mistakes=adapter.mistakes,
            prepare=adapter.prepare,
        )
        monkeypatch.setitem(run.FOLDER_BACKENDS, "auto-gptq", backend)
        monkeypatch.setattr(run, "require", lambda name: {})

    return use


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('half way', flush=True); import os; os.kill(os.getpid(), 9)", r"was killed \(SIGKILL\).*\n  half way"),
        ("raise SystemExit('no more disk')", "failed with exit code 1.*\n  no more disk"),
    ],
)
def test_a_child_that_dies_is_told_of_and_leaves_nothing(llama, stand_in, code, said):
    stand_in(code)
    with pytest.raises(BackendError, match=said):
        llama.results(llama.plan("w4a16-g32"))
    assert not list(llama.work.glob("*"))


def test_without_its_environment_the_command_is_said(llama, monkeypatch, tmp_path):
    monkeypatch.setenv("MVQUANT_HOME", str(tmp_path))
    with pytest.raises(BackendError, match="to install: mvquant backends install auto-gptq"):
        llama.results(llama.plan("w4a16-g32"))


@pytest.fixture(scope="module")
def quantized(llama):
    plan = llama.plan("w4a16-g32")
    return plan, llama.results(plan)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """By family and scheme: the model, its plan, and the folder of a job that is done and loaded again by auto-gptq."""
    cases = {}
    for family, scheme in RELOADED:
        place = tmp_path_factory.mktemp(f"{family}-{scheme}")
        world = World(place, family, **({} if family in ("gpt_neox", "opt") else ROPE))
        plan = world.plan(scheme)
        (place / "job").mkdir()
        run.write_job(adapter.AUTO_GPTQ, world.checkpoint, world.view, plan, BATCHES, place / "job")
        cases[family, scheme] = world, plan, place / "job"
    places = [place for _, _, place in cases.values()]
    run.run_jobs(adapter.AUTO_GPTQ, [place / run.JOB for place in places], places[0] / "log")
    save_file({"tokens": TOKENS}, places[0] / "reload.safetensors")
    python = str(environment_python(environment_folder("auto-gptq")))
    script = str(Path(__file__).with_name("reload_packed.py"))
    command = [python, "-I", script, str(places[0] / "reload.safetensors")]
    done = subprocess.run(
        [*command, *(str(place / "quantized") for place in places)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return cases


class TestForReal:
    """Where its environment is installed."""

    pytestmark = needs_environment

    @pytest.mark.parametrize(("family", "scheme"), RELOADED)
    def test_our_modules_give_the_logits_of_its_own_reload(self, reloaded, family, scheme):
        world, plan, place = reloaded[family, scheme]
        results = run.read_results(world.checkpoint, world.view, plan, place)
        theirs = load_file(place / "quantized" / "logits-of-reload")["logits"]
        with torch.inference_mode():
            exact = world.model()(TOKENS).logits
            ours = apply_plan(world.model(), plan, results)(TOKENS).logits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * exact.std().item())
        if not scheme.startswith("w8"):
            assert (exact - ours).abs().max() > 0.01

    def test_what_is_rounded_fits_better_than_rounding_to_nearest(self, llama, quantized):
        plan, results = quantized
        nearest = Recipe.model_validate({"summary": "rounded", "weights": {"scheme": "w4a16-g32"}})
        rounded = make_plan(llama.view, nearest, model="tiny", dtype="bfloat16")
        with torch.inference_mode():
            exact = llama.model()(torch.cat(BATCHES)).logits
            gptq = apply_plan(llama.model(), plan, results)(torch.cat(BATCHES)).logits
            rtn = apply_plan(llama.model(), rounded)(torch.cat(BATCHES)).logits
        assert (gptq - exact).square().mean() < (rtn - exact).square().mean()

    def test_every_module_has_a_record(self, quantized):
        plan, results = quantized
        assert {record.module for record in results.records} == {module.name for module in plan.modules}
        assert {record.tokens for record in results.records} == {8 * 96}
        assert all(record.damping == 0.01 and record.error > 0 for record in results.records)
        assert not results.changed

    def test_protected_rows_leave_every_other_integer_as_it_was(self, llama, quantized):
        plan, results = quantized
        protecting = llama.plan("w4a16-g32", protect={"policy": "massive", "pairs": 0.25})
        protected = llama.results(protecting)
        for module, before in zip(protecting.modules, plan.modules, strict=True):
            others = sorted(set(range(module.rows)) - set(module.protected_rows))
            state, base = protected.state(module.name), results.state(before.name)
            integers = unpack(base["weight_packed"], 4, module.columns)
            assert torch.equal(unpack(state["weight_packed"], 4, module.columns), integers[others])
            assert torch.equal(state["weight_scale"], base["weight_scale"][others])
        assert any(module.protected_rows for module in protecting.modules)

    def test_ignored_modules_stay_as_they_are(self, llama):
        plan = llama.plan("w4a16-g32", ignore=["*.0.mlp.down_proj"])
        results = llama.results(plan)
        names = {record.module for record in results.records}
        assert "model.layers.0.mlp.down_proj" not in names
        assert "model.layers.1.mlp.down_proj" in names

    def test_a_rope_base_that_gets_lost_is_noticed_before_anything_is_quantized(self, llama, monkeypatch):
        convert = adapter.legacy_config
        monkeypatch.setattr(adapter, "legacy_config", lambda config: {**convert(config), "rope_theta": 10000.0})
        before = set(llama.work.glob("*"))
        with pytest.raises(BackendError, match="gives other logits in auto-gptq's environment than in mvquant's"):
            llama.results(llama.plan("w4a16-g32"))
        assert set(llama.work.glob("*")) == before

    def test_a_killed_child_leaves_nothing(self, llama, monkeypatch):
        worker = adapter.WORKER.read_text()
        dying = worker.replace("records.append(record)", "os.kill(os.getpid(), 9)")
        assert dying != worker
        script = llama.checkpoint.folder / "dying.py"
        script.write_text(dying)
        monkeypatch.setattr(adapter, "WORKER", script)
        before = set(llama.work.glob("*"))
        with pytest.raises(BackendError, match=f"was killed \\({signal.Signals(9).name}\\)"):
            llama.results(llama.plan("w4a16-g32"))
        assert set(llama.work.glob("*")) == before
