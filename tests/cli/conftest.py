"""The command line as a function."""

import sys

import pytest

from mvquant.cli import main


@pytest.fixture
def mvquant(monkeypatch, capsys):
    """Run the command line in this process: returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mvquant", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
