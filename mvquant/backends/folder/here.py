"""Run the program of a package in this very process, where that is there for nothing else.

A package changes what it likes of a process: where it writes, its folder, its threads. What can be put back is put back
when it is done, and what it printed is in its log. torch is in memory once, but a crash takes all of the process along:
somebody has to watch it (`mvquant.cli.worker`).
"""

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

import torch

from mvquant.backends.child import failure, last_lines
from mvquant.backends.folder.child import do_job, no_network, progress_to
from mvquant.backends.folder.programs import QUIET, Program
from mvquant.backends.memory import release_freed_memory
from mvquant.progress import Progress

_LOGS: list[TextIO] = []
"""Never closed: what packages have set up to log with goes on writing there, until the process ends."""


def run_here(program: Program, jobs: Sequence[Path], log: Path, *, what: str, progress: Progress | None = None) -> None:
    """Do jobs, one after the other, with all output in a file.

    Args:
        program: that does them.
        jobs: their files.
        log: file that the output is added to.
        what: to call it in errors.
        progress: told of every layer.

    Raises:
        BackendError: it failed; with its last lines.
    """
    with ExitStack() as changes:
        changes.enter_context(_streams_to(log))
        changes.enter_context(_put_back())
        changes.enter_context(_environment({**QUIET, **program.environment}))
        changes.enter_context(no_network())
        changes.enter_context(progress_to(progress or _tell_nobody))
        failed = not _do(program, jobs)
    gc.collect()  # models go in circles
    release_freed_memory()
    if failed:
        raise failure(what, "failed", last_lines(log))


def _do(program: Program, jobs: Sequence[Path]) -> bool:
    """Do jobs until one fails, and print why; not of interrupts, which are none of the package's."""
    try:
        quantize = importlib.import_module(program.module).quantize
        for job in jobs:
            do_job(quantize, job)
    except (Exception, SystemExit):  # noqa: BLE001 - whatever a package raises
        traceback.print_exc()
        return False
    return True


def _tell_nobody(what: str, done: int, total: int) -> None:
    del what, done, total


@contextmanager
def _streams_to(log: Path) -> Generator[None]:
    """Have all output go to a file, that of compiled code too, and let nobody read what is typed."""
    text = log.open("a", buffering=1, encoding="utf-8")
    _LOGS.append(text)
    sys.stdout.flush()
    sys.stderr.flush()
    before = {stream: os.dup(stream) for stream in (0, 1, 2)}
    try:
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(text.fileno(), stream)
        with redirect_stdout(text), redirect_stderr(text):
            yield
    finally:
        for stream, was in before.items():
            os.dup2(was, stream)
            os.close(was)
        with suppress(OSError):  # a full disk is no reason to hide why the package failed
            text.flush()


@contextmanager
def _put_back() -> Generator[None]:
    """Put back what packages change of a process and the checkpoint's writer depends on."""
    folder, threads, dtype = Path.cwd(), torch.get_num_threads(), torch.get_default_dtype()
    try:
        with torch.enable_grad():  # grad mode is put back by torch
            yield
    finally:
        os.chdir(folder)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@contextmanager
def _environment(more: Mapping[str, str]) -> Generator[None]:
    """Have other environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
