import errno
import os
import signal
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from mvquant.backends import registry
from mvquant.backends.folder import run
from mvquant.backends.folder.run import FOLDER_BACKENDS, make_job, require_backend_fit, run_folder_backend
from mvquant.errors import BackendError, CheckpointError, PlanError, UnsupportedModelError
from mvquant.pipeline import open_model
from mvquant.scheme import WeightScheme
from tests.backends.folder.packages import calibration_tokens, plan_of, save_model
from tests.tiny_models import tiny_model

GPTQ = "method: {name: gptq, backend: gptqmodel}"
AWQ = "method: {name: awq, backend: gptqmodel}"
AUTOAWQ = "scheme: w4a16-g64-asym, method: {name: awq, backend: autoawq}"


@pytest.fixture
def opened(tmp_path):
    return save_model(tmp_path / "model")


def with_child(monkeypatch, code):
    """Have gptqmodel's child run some Python instead."""
    child = replace(FOLDER_BACKENDS["gptqmodel"], command=lambda *_jobs: [sys.executable, "-c", code])
    monkeypatch.setitem(FOLDER_BACKENDS, "gptqmodel", child)


def run_gptq(opened, work, progress=None):
    plan = plan_of(opened, f"scheme: w4a16-g64, {GPTQ}")
    return run_folder_backend(opened.checkpoint, opened.view, plan, calibration_tokens(), work, progress)


def test_a_crash_says_the_last_lines_and_leaves_nothing_behind(opened, tmp_path, monkeypatch, capfd):
    with_child(monkeypatch, "print('noise'); raise MemoryError('no room for layer 1')")
    with pytest.raises(BackendError, match="backend gptqmodel failed with exit code 1") as caught:
        run_gptq(opened, tmp_path / "work")
    assert "MemoryError: no room for layer 1" in str(caught.value)
    assert not (tmp_path / "work").exists()
    assert capfd.readouterr().out == ""


def test_a_full_disk_is_named_and_leaves_nothing_behind(opened, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run, "save_tokens", full)
    with pytest.raises(CheckpointError, match=r"work: cannot be written \(No space left on device\)"):
        run_gptq(opened, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_killed_child_is_called_so(opened, tmp_path, monkeypatch):
    with_child(monkeypatch, f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    with pytest.raises(BackendError, match="SIGKILL"):
        run_gptq(opened, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_child_that_saves_nothing_is_an_error(opened, tmp_path, monkeypatch):
    code = "import sys, pathlib; print('mvquant-progress 1 2 model.layers.0')"
    with_child(monkeypatch, code)
    told = []
    with pytest.raises(BackendError, match="saved nothing"):
        run_gptq(opened, tmp_path / "work", lambda *said: told.append(said))
    assert told == [("model.layers.0", 1, 2)]
    assert not (tmp_path / "work").exists()


def test_a_missing_package_is_named_with_its_install_command(opened, tmp_path, monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("mvquant.backends.environments.version", nothing)
    plan = plan_of(opened, AUTOAWQ)
    with pytest.raises(BackendError, match="pip install") as caught:
        run_folder_backend(opened.checkpoint, opened.view, plan, calibration_tokens(), tmp_path / "work")
    assert registry.BACKENDS["autoawq"].install in str(caught.value)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("weights", "protect", "message"),
    [
        ("scheme: w4a16-g64, method: {name: gptq, backend: gptqmodel, block_size: 64}", "none", "block_size 64"),
        ("scheme: w4a16-g64, method: {name: awq, backend: gptqmodel, grid_points: 10}", "none", "grid_points 10"),
        ("scheme: w4a16-g64-asym, method: {name: awq, backend: autoawq, grid_points: 10}", "none", "grid_points 10"),
        (f"{AUTOAWQ}, ignore: ['*.o_proj']", "none", "cannot leave modules out"),
    ],
)
def test_what_a_package_cannot_do_is_refused(opened, weights, protect, message):
    plan = plan_of(opened, weights, f"{{policy: {protect}}}")
    with pytest.raises(PlanError, match=message):
        require_backend_fit(plan, opened.view)


def test_awq_of_a_float32_model_is_refused(tmp_path):
    opened = save_model(tmp_path / "model", torch.float32)
    with pytest.raises(PlanError, match="float32"):
        require_backend_fit(plan_of(opened, f"scheme: w4a16-g64, {AWQ}"), opened.view)


def test_awq_of_rows_that_it_cannot_clip_is_refused(tmp_path):
    opened = save_model(tmp_path / "model", head_dim=16)
    for weights in (f"scheme: w4a16-g32, {AWQ}", AUTOAWQ.replace("g64", "g32")):
        with pytest.raises(PlanError, match="64 rows at a time"):
            require_backend_fit(plan_of(opened, weights), opened.view)


@pytest.mark.parametrize("weights", [f"scheme: w4a16-g32, {GPTQ}", "scheme: w4a16-g32, method: autoround"])
def test_unknown_families_are_refused(tmp_path, weights):
    tiny_model("mixtral").save_pretrained(tmp_path / "model")
    opened = open_model(str(tmp_path / "model"))
    with pytest.raises(UnsupportedModelError, match="does not quantize mixtral models"):
        require_backend_fit(plan_of(opened, weights), opened.view)


@pytest.mark.parametrize("weights", [f"scheme: w4a16-g64, {AWQ}", AUTOAWQ])
def test_a_package_with_one_scheme_gets_no_other_and_is_to_keep_all_rows(opened, tmp_path, weights):
    plan = plan_of(opened, weights, "{policy: whole-module}")
    job = make_job(plan, opened.view, tmp_path)
    assert (job.scheme, job.other_schemes) == (plan.recipe.weights.scheme, {})
    whole = {module.name: module.rows for module in plan.modules if module.scheme.bits == 8}
    assert {name.rpartition(".")[2] for name in whole} == {"q_proj", "k_proj"}
    assert {name: len(rows) for name, rows in job.kept.items()} == whole


@pytest.mark.parametrize("weights", [f"scheme: w4a16-g64, {AWQ}", AUTOAWQ])
@pytest.mark.parametrize("other", ["w4a16-g32-asym", "w3a16-g64-asym", "w8a8"])
def test_a_package_with_one_scheme_refuses_others_that_are_no_protection(opened, weights, other):
    plan = plan_of(opened, weights)
    first, *others = plan.modules
    changed = first.model_copy(update={"scheme": WeightScheme.model_validate(other)})
    with pytest.raises(PlanError, match=f"{first.name} is planned as {other}, and it rounds all modules as w4a16-g64"):
        require_backend_fit(plan.model_copy(update={"modules": (changed, *others)}), opened.view)


def test_controls_with_smaller_groups_are_not_rounded_to_nearest_without_a_word(opened):
    """They have the recipe's scheme in a few modules only."""
    plan = plan_of(opened, AUTOAWQ)
    finer = WeightScheme.model_validate("w4a16-g32-asym")
    *most, last = plan.modules
    recipe = plan.recipe.model_copy(update={"weights": plan.recipe.weights.model_copy(update={"scheme": finer})})
    mixed = plan.model_copy(update={"recipe": recipe, "modules": (*most, last.model_copy(update={"scheme": finer}))})
    with pytest.raises(PlanError, match="rounds all modules as w4a16-g32-asym"):
        require_backend_fit(mixed, opened.view)


def test_a_job_says_all_of_the_plan(opened, tmp_path):
    recipe = f"scheme: w4a16-g64, {GPTQ}, ignore: ['*.0.mlp.*']"
    job = make_job(plan_of(opened, recipe, "{policy: whole-module}"), opened.view, tmp_path)
    assert job.scheme.name == "w4a16-g64"
    assert {name.rpartition(".")[2] for name in job.other_schemes} == {"q_proj", "k_proj"}
    assert all(scheme.bits == 8 for scheme in job.other_schemes.values())
    assert job.ignored == tuple(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))
    assert (job.seed, job.layers) == (7, ("model.layers.0", "model.layers.1"))
    assert run.Job.model_validate_json(job.model_dump_json()) == job
