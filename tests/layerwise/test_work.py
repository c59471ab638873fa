"""The work folder is taken up by the very same work only."""

import pytest
import torch

from mvquant.errors import CheckpointError, UsageError
from mvquant.layerwise import opened_work
from tests.layerwise.examples import fingerprint


class StopError(Exception):
    pass


@pytest.fixture
def interrupted(tmp_path):
    """A folder with one finished layer."""
    path = tmp_path / "out.work"
    with pytest.raises(StopError), opened_work(path, fingerprint()) as work:
        work.finish_layer(0, {"q": {"weight_packed": torch.arange(4)}}, {"norm": torch.ones(2)}, [])
        raise StopError
    return path


def test_what_was_done_is_there_again(interrupted):
    with opened_work(interrupted, fingerprint(), resume=True) as work:
        assert work.finished == 1
        results = work.results(1)
        assert list(results.changed) == ["norm"]
        assert results.parameter("norm").tolist() == [1.0, 1.0]
        assert results.state("q")["weight_packed"].tolist() == [0, 1, 2, 3]


def test_it_is_not_taken_up_unasked(interrupted):
    with pytest.raises(UsageError, match=r"1 layers done.*--resume"), opened_work(interrupted, fingerprint()):
        pass


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "other"}, "the model"),
        ({"plan": "other"}, "the plan"),
        ({"calibration": "other"}, "the calibration text"),
        ({"settings": {"damping": 0.1}}, r"damping \(0\.01, now 0\.1\)"),
        ({"settings": {"damping": 0.01, "block_size": 64}}, r"block_size \(None, now 64\)"),
        ({"versions": {"torch": "3"}}, r"torch \(2, now 3\)"),
    ],
)
def test_other_work_is_refused_and_says_what_differs(interrupted, changes, named):
    with (
        pytest.raises(UsageError, match=f"cannot be resumed.*{named}"),
        opened_work(interrupted, fingerprint(**changes), resume=True),
    ):
        pass
    with opened_work(interrupted, fingerprint(), resume=True) as work:
        assert work.finished == 1


def test_every_field_of_the_fingerprint_counts():
    for name in type(fingerprint()).model_fields:
        other = {"other": "1"} if isinstance(getattr(fingerprint(), name), dict) else "other"
        assert fingerprint().differences(fingerprint(**{name: other}))


def test_a_damaged_fingerprint_is_refused(interrupted):
    (interrupted / "fingerprint.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"), opened_work(interrupted, fingerprint(), resume=True):
        pass


def test_two_runs_at_once_are_refused(interrupted):
    with (
        opened_work(interrupted, fingerprint(), resume=True),
        pytest.raises(UsageError, match="another run is at work"),
        opened_work(interrupted, fingerprint(), resume=True),
    ):
        pass


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="was not made by mvquant"), opened_work(tmp_path, fingerprint()):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_nothing_done_leaves_nothing(tmp_path):
    with pytest.raises(StopError), opened_work(tmp_path / "work", fingerprint()):
        raise StopError
    assert not (tmp_path / "work").exists()


def test_resuming_where_there_is_nothing_begins(tmp_path):
    with opened_work(tmp_path / "work", fingerprint(), resume=True) as work:
        assert work.finished == 0


def test_a_damaged_layer_is_named(interrupted):
    (interrupted / "layer-00000.safetensors").write_bytes(b"\0" * 16)
    with (
        opened_work(interrupted, fingerprint(), resume=True) as work,
        pytest.raises(CheckpointError, match="layer-00000"),
    ):
        work.results(1)
