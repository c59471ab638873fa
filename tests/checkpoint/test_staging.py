import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from mvquant.analysis import analyze, save_analysis
from mvquant.arch import model_view
from mvquant.checkpoint import staging
from mvquant.checkpoint.folder import open_checkpoint
from mvquant.checkpoint.native import QUANT_METHOD
from mvquant.checkpoint.staging import check_writable, staged_folder
from mvquant.checkpoint.write import write_checkpoint
from mvquant.comparison.store import Store
from mvquant.errors import CheckpointError, UsageError
from mvquant.named_schemes import recipe_for_scheme
from mvquant.policies import make_plan
from mvquant.stats import collect_stats, save_stats
from tests.evaluation.examples import make_result
from tests.report.comparisons import results
from tests.tiny_models import tiny_model, tiny_tokens


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_only_when_complete(tmp_path):
    with staged_folder(tmp_path / "deep" / "out") as stage:
        (stage / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(tmp_path, error):
    with pytest.raises(error), staged_folder(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_a_full_disk_is_reported_and_cleaned_up(tmp_path):
    message = r"No space left on device.*nothing was left behind"
    with pytest.raises(CheckpointError, match=message), staged_folder(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_an_existing_folder_is_replaced_only_when_asked_for_and_ours(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text(results().model_dump_json())
    with pytest.raises(UsageError, match="--overwrite"), staged_folder(out):
        pass
    with pytest.raises(RuntimeError), staged_folder(out, overwrite=True):
        raise RuntimeError
    assert names(out) == ["results.json"]
    with staged_folder(out, overwrite=True) as stage:
        (stage / "new").touch()
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]
    with pytest.raises(UsageError, match="holds no model or report of mvquant:"), staged_folder(out, overwrite=True):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="holds no model or report of mvquant:"):
        check_writable(tmp_path / "file", overwrite=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of each kind that commands write, and of single files that they save."""
    place = tmp_path_factory.mktemp("written")
    model = tiny_model("llama")
    model.save_pretrained(place / "model")
    view = model_view(model.config)
    checkpoint = open_checkpoint(str(place / "model"))
    plan = make_plan(view, recipe_for_scheme("w4a16-g32"), model="tiny", dtype=checkpoint.dtype)
    write_checkpoint(checkpoint, view, plan, place / "quantize")
    for name in ("analyze", "compare", "plan", "eval"):
        (place / name).mkdir()
    stats = collect_stats(model, view, [tiny_tokens(2, 48)], source="random tokens", seed=3)
    save_analysis(analyze(view, stats), place / "analyze" / "analysis.json")
    save_stats(stats, place / "analyze" / "stats.safetensors")
    (place / "compare" / "results.json").write_text(results().model_dump_json())
    Store(place / "compare-whole", print).open()
    shutil.copy(place / "compare" / "results.json", place / "compare-whole")
    plan.save(place / "plan" / "plan.json")
    make_result("tiny", {"passkey": 0.9}).save(place / "eval" / "results.json")
    return place


@pytest.mark.parametrize("command", ["quantize", "analyze", "compare", "compare-whole", "plan", "eval"])
def test_what_commands_write_is_replaced(written, tmp_path, command):
    shutil.copytree(written / command, tmp_path / "out")
    with staged_folder(tmp_path / "out", overwrite=True) as stage:
        (stage / "new").touch()
    assert names(tmp_path / "out") == ["new"]


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    check_writable(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("command", ["quantize", "analyze", "compare-whole"])
def test_a_folder_of_ours_may_have_other_files(written, tmp_path, command):
    shutil.copytree(written / command, tmp_path / "out")
    (tmp_path / "out" / "README.md").touch()
    check_writable(tmp_path / "out", overwrite=True)


def refused(out, message):
    before = names(out)
    with pytest.raises(UsageError, match=f"{message}.*it is not replaced; remove it yourself"):
        check_writable(out, overwrite=True)
    assert names(out) == before


@pytest.mark.parametrize("name", ["results.json", "plan.json", "analysis.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b"{}", b'{"schema_version": 1, "model": "m", "versions": {}, "tasks": {}}']
)
def test_a_file_of_that_name_does_not_make_a_folder_ours(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, rf"holds no model or report of mvquant \({name} there is another tool's")


@pytest.mark.parametrize("command", ["plan", "eval", "compare"])
def test_a_file_of_ours_among_a_persons_own_does_not_make_the_folder_ours(written, tmp_path, command):
    shutil.copytree(written / command, tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").touch()
    refused(tmp_path / "out", "or lies among other files")


def test_a_model_that_is_not_ours_is_not_replaced(written, tmp_path):
    shutil.copytree(written / "quantize", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for quantized in (None, "mvquant", {"quant_method": "gptq"}):
        (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "quantization_config": quantized}))
        refused(tmp_path / "out", "holds no model")
    refused(written / "model", "holds no model or report of mvquant:")


def test_the_mark_of_our_checkpoints_is_theirs():
    assert staging._OWN_METHOD == QUANT_METHOD


def test_what_was_there_comes_back_where_the_new_cannot_take_its_place(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text(results().model_dump_json())
    rename = type(out).rename

    def refuse(path, target):
        if path.name == staging.NEW:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(type(out), "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"), staged_folder(out, overwrite=True):
        pass
    assert names(tmp_path) == ["out"]
    assert names(out) == ["results.json"]


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write there"), staged_folder(tmp_path / "file" / "out"):
        pass


WRITER = """
    import pathlib, sys, time
    from mvquant.checkpoint.staging import staged_folder
    with staged_folder(pathlib.Path(sys.argv[1])) as stage:
        (stage / "file").write_text("x")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def writer():
    """Start processes that write a folder until they are ended."""
    started = []

    def start(out):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_terminated_job_leaves_nothing_behind(tmp_path, writer):
    process = writer(tmp_path / "out")
    assert len(names(tmp_path)) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert names(tmp_path) == []


def test_what_a_killed_job_left_is_removed_by_the_next(tmp_path, writer):
    killed, other = writer(tmp_path / "out"), writer(tmp_path / "out.partial-x")
    for process in (killed, other):
        process.kill()
        process.wait(timeout=30)
    assert len(names(tmp_path)) == 2
    with staged_folder(tmp_path / "out"):
        pass
    left = names(tmp_path)
    assert left[-1] == "out"
    assert [name.startswith(".out.partial-x.partial-") for name in left] == [True, False]


def test_what_a_living_job_writes_is_left_alone(tmp_path, writer):
    process = writer(tmp_path / "out")
    (stage,) = tmp_path.iterdir()
    os.utime(stage, (0, 0))
    with staged_folder(tmp_path / "out"):
        assert (stage / staging.NEW / "file").read_text() == "x"
    assert (stage / staging.NEW / "file").read_text() == "x"
    process.kill()
    process.wait(timeout=30)
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert names(tmp_path) == ["out"]


def test_a_folder_without_a_lock_is_left_alone(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with staged_folder(tmp_path / "out") as first:
        (first / "file").touch()
        with pytest.raises(RuntimeError), staged_folder(tmp_path / "out"):
            raise RuntimeError
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]


def test_what_was_being_replaced_is_kept_until_something_is_in_its_place(tmp_path):
    killed = tmp_path / ".out.partial-abcdefgh"
    (killed / staging.OLD).mkdir(parents=True)
    (killed / staging.LOCK).touch()
    with staged_folder(tmp_path / "out") as stage:
        (stage / "file").touch()
        assert (killed / staging.OLD).is_dir()
    (tmp_path / "out" / "file").unlink()
    with staged_folder(tmp_path / "out", overwrite=True):
        assert not killed.exists()
