import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from mvquant.checkpoint.staging import staged_folder
from mvquant.errors import CheckpointError, UsageError


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
    (out / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match="--overwrite"), staged_folder(out):
        pass
    with pytest.raises(RuntimeError), staged_folder(out, overwrite=True):
        raise RuntimeError
    assert names(out) == ["plan.json"]
    with staged_folder(out, overwrite=True) as stage:
        (stage / "new").touch()
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]
    with pytest.raises(UsageError, match="holds no model or report of mvquant"), staged_folder(out, overwrite=True):
        pass


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write there"), staged_folder(tmp_path / "file" / "out"):
        pass


def test_a_killed_job_leaves_nothing_behind(tmp_path):
    script = textwrap.dedent(f"""
        import pathlib, time
        from mvquant.checkpoint.staging import staged_folder
        with staged_folder(pathlib.Path({str(tmp_path / "out")!r})) as stage:
            print("ready", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert len(names(tmp_path)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert names(tmp_path) == []
