"""What runs AutoRound on a job, in a child process or a worker. Importing this module does not import the package."""

import logging
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mvquant.backends.folder.child import run_child, say_progress
from mvquant.backends.folder.job import Job, load_tokens
from mvquant.backends.layer import ModuleRecord
from mvquant.backends.nearest import lost_energy
from mvquant.backends.replaced import replaced
from mvquant.method_settings import AutoRound as Settings
from mvquant.scheme import WeightScheme

FORMAT = "auto_round:gptqmodel"
"""GPTQ's layout with zero points as they are: stored less one, a zero point of 0 would not survive at 3 bits."""

CHOSEN_LOSS = re.compile(r"loss iter 0: \S+ -> iter \d+: (\S+)")

SCALES = {"float32": "fp16", "bfloat16": "bf16", "float16": "fp16"}
"""The package stores scales as float16; those of bfloat16 fit in, but for tiny ones."""


def quantize(job: Job) -> list[ModuleRecord]:
    """Quantize a model by learnt rounding, and save it."""
    import auto_round

    assert isinstance(job.method, Settings)
    tokens = load_tokens(job.tokens)
    model = AutoModelForCausalLM.from_pretrained(job.source, dtype=getattr(torch, job.dtype))
    rounding_of: Any = auto_round.AutoRound
    rounding = rounding_of(
        model,
        AutoTokenizer.from_pretrained(job.source),
        **_scheme(job.scheme),
        layer_config=_layer_config(job),
        iters=job.method.iterations,
        batch_size=min(job.method.batch_size, len(tokens)),
        dataset=tokens,
        nsamples=len(tokens),
        seqlen=tokens[0].shape[1],
        seed=job.seed,
        scale_dtype=SCALES[job.dtype],
        device_map=job.device,
        enable_torch_compile=False,
    )
    made, records = job.out.with_name("made"), list[ModuleRecord]()
    with _watched_blocks(job, model, records):
        rounding.quantize_and_save(str(made), format=FORMAT)
    _move_saved(made, job.out)
    return records


def _scheme(scheme: WeightScheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric, "data_type": "int"}


def _layer_config(job: Job) -> dict[str, dict[str, Any]]:
    """The package's rules for modules that are left out, or have another scheme."""
    left_out: dict[str, dict[str, Any]] = {
        name: {"bits": 16, "act_bits": 16, "data_type": "fp"} for name in job.ignored
    }
    return left_out | {name: _scheme(scheme) for name, scheme in job.other_schemes.items()}


def _move_saved(made: Path, out: Path) -> None:
    """Find what was saved: the package names a folder after the model, below the one that it is told."""
    shutil.move(next(made.rglob("config.json")).parent, out)
    shutil.rmtree(made, ignore_errors=True)


class _Losses(logging.Handler):
    """Reads the loss of the last block from the package's log, the only place where it says it."""

    last: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if found := CHOSEN_LOSS.search(record.getMessage()):
            self.last = float(found[1])


@contextmanager
def _watched_blocks(job: Job, model: nn.Module, records: list[ModuleRecord]) -> Generator[None]:
    """Say how far the work is after every decoder layer; keep its time, and the loss of the rounding that was chosen.

    The package learns a layer as a whole, and says nothing of its modules: for those, there is the share of the
    weight's energy that rounding took. It is taken when rounded values are written over a weight, one by one: copies of
    all weights of a layer would be held while it is learnt.
    """
    from auto_round.algorithms.quantization.sign_round import quantizer
    from auto_round.logger import logger

    losses = _Losses()
    logger.addHandler(losses)

    learner: Any = quantizer.SignRoundQuantizer
    wrapper: Any = quantizer.WrapperLinear
    learn, unwrap = learner.quantize_block, wrapper.unwrapper
    names = {id(module): name for name, module in model.named_modules()}
    lost: dict[str, float] = {}

    def unwrapper(self: Any, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ANN401 - handed on
        before = self.orig_layer.weight.detach().clone()
        linear = unwrap(self, *args, **kwargs)
        lost[names[id(linear)]] = lost_energy(before, linear.weight.detach())
        return linear

    def quantize_block(self: Any, block: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - handed on
        start, layer = time.monotonic(), names[id(block)]
        best = learn(self, block, *args, **kwargs)
        say_progress(job, layer, losses.last)
        seconds = time.monotonic() - start
        records.append(ModuleRecord(module=layer, seconds=seconds, error=losses.last))
        mine = [name for name in lost if name.startswith(f"{layer}.") and name not in job.ignored]
        each = seconds / max(len(mine), 1)
        records.extend(ModuleRecord(module=name, seconds=each, error=lost.pop(name)) for name in mine)
        return best

    with replaced(learner, quantize_block=quantize_block), replaced(wrapper, unwrapper=unwrapper):
        yield


if __name__ == "__main__":
    run_child(quantize)
