"""The bar that long work draws: on a terminal, with what was done last and the time left; nowhere else."""

import io

import pytest
from rich.console import Console

from mvquant.cli import terminal
from mvquant.cli.terminal import progress_bar

CLEAR_LINE = "\x1b[2K"


class Screen:
    """A terminal of 80 columns, and the clock that the bar looks at."""

    def __init__(self, *, is_terminal: bool = True) -> None:
        self.seconds = 0.0
        self._drawn = io.StringIO()
        self.console = Console(
            file=self._drawn,
            force_terminal=is_terminal,
            color_system=None,
            width=80,
            get_time=lambda: self.seconds,
            _environ={"TERM": "xterm"},
        )

    @property
    def drawn(self) -> str:
        return self._drawn.getvalue()

    @property
    def last_line(self) -> str:
        """The bar as it stood before it was wiped at the end."""
        lines = [part.partition("\n")[0] for part in self.drawn.split(CLEAR_LINE)]
        return next(line for line in reversed(lines) if line.startswith("quantizing"))

    def work(self, monkeypatch, details, total, seconds_each, **options):
        """Tell a bar on this screen of one layer after another."""
        monkeypatch.setattr(terminal, "err", self.console)
        with progress_bar("quantizing", **options) as tell:
            tell("", 0, total)
            for done, detail in enumerate(details, start=1):
                self.seconds += seconds_each
                tell(detail, done, total)


@pytest.mark.parametrize(("seconds_each", "left"), [(2.0, "0:00:04"), (300.0, "0:10:00")])
def test_a_terminal_shows_the_layer_its_loss_and_the_time_left(monkeypatch, seconds_each, left):
    screen = Screen()
    details = [f"model.layers.{layer} loss 0.012{layer}" for layer in range(4)]
    screen.work(monkeypatch, details, 6, seconds_each)
    assert screen.last_line.split()[-5:] == ["4/6", left, "model.layers.3", "loss", "0.0123"]


def test_the_longest_layer_and_loss_fit_into_80_columns(monkeypatch):
    screen = Screen()
    screen.work(monkeypatch, [f"model.layers.{layer} loss 1.23e-05" for layer in range(126)], 128, 1.0)
    assert screen.last_line.endswith("126/128 0:00:02 model.layers.125 loss 1.23e-05")
    assert len(screen.last_line) <= 80


def test_of_a_longer_name_the_end_is_shown(monkeypatch):
    screen = Screen()
    screen.work(monkeypatch, ["model.decoder.layers.12 loss 1.23e-05"], 24, 1.0)
    assert screen.last_line.endswith(" decoder.layers.12 loss 1.23e-05"[-30:])


def test_nothing_is_drawn_without_a_terminal_or_by_other_processes(monkeypatch):
    piped, silent = Screen(is_terminal=False), Screen()
    piped.work(monkeypatch, ["model.layers.0"], 2, 1.0)
    silent.work(monkeypatch, ["model.layers.0"], 2, 1.0, shown=False)
    assert piped.drawn == silent.drawn == ""
