"""What runs GPTQModel on a job, in a child process or a worker. Importing this module does not import the package."""

import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvquant.backends.folder.child import SeenRows, as_stored, run_child, say_progress
from mvquant.backends.folder.job import Job, load_tokens
from mvquant.backends.layer import ModuleRecord
from mvquant.backends.replaced import replaced
from mvquant.method_settings import Awq, Gptq
from mvquant.scheme import WeightScheme

NOT_INVERTED = 999999999.0
"""What the package gives as the loss of a matrix that it could not do, and rounded to nearest instead."""

PACKED_COLUMNS = 256
"""That are packed at once: a multiple of 32."""


def quantize(job: Job) -> list[ModuleRecord]:
    """Quantize a model with GPTQ or AWQ and save it in the classic format."""
    from gptqmodel import GPTQModel

    dtype: torch.dtype = getattr(torch, job.dtype)
    seen = SeenRows(job.kept)
    model: Any = GPTQModel.load(str(job.source), _config(job), dtype=dtype, device=job.device)
    tokens = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in load_tokens(job.tokens)]
    with ExitStack() as changes:
        changes.enter_context(_watched_records(job))
        changes.enter_context(_packed_in_blocks())
        changes.enter_context(_disk_not_timed())
        if isinstance(job.method, Gptq):
            changes.enter_context(_stored_scales(dtype))
        if isinstance(job.method, Awq):
            changes.enter_context(_taken_weights(model.model, seen, job.method.duo_scaling))
        said = model.quantize(
            tokens, batch_size=1, calibration_sort=None, calibration_data_min_length=0, backend=_kernel(job)
        )
    model.save(str(job.out))
    del model
    shutil.rmtree(_offloaded(job), ignore_errors=True)
    seen.save(job.seen)
    return list(_records(job, said))


def _config(job: Job) -> Any:  # noqa: ANN401 - a class of the package
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    common: dict[str, Any] = {
        "bits": job.scheme.bits,
        "group_size": job.scheme.group_size,
        "sym": job.scheme.symmetric,
        "dynamic": _dynamic(job) or None,
        "fallback": None,  # what cannot be calibrated is an error, not silently rounded to nearest
        "offload_to_disk_path": str(_offloaded(job)),
    }
    if isinstance(job.method, Gptq):
        order = job.method.activation_order
        return GPTQConfig(
            **common,
            damp_percent=job.method.damping,
            desc_act=order,
            static_groups=order,
            act_group_aware=False,
        )
    return AWQConfig(**common)


def _offloaded(job: Job) -> Path:
    """Where the package keeps layers that are done: in the job's own folder, so that nothing stays elsewhere."""
    return job.out.with_name("offloaded")


def _dynamic(job: Job) -> dict[str, dict[str, Any]]:
    """The package's rules for modules that are left out, or have another scheme: patterns of full names."""
    left_out: dict[str, dict[str, Any]] = {f"-:^{re.escape(name)}$": {} for name in job.ignored}
    return left_out | {f"+:^{re.escape(name)}$": _override(scheme) for name, scheme in job.other_schemes.items()}


def _override(scheme: WeightScheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric}


def _kernel(job: Job) -> Any:  # noqa: ANN401 - an enum of the package
    from gptqmodel.utils.backend import BACKEND

    return BACKEND.AWQ_TORCH if isinstance(job.method, Awq) else BACKEND.GPTQ_TORCH


def _stored_scales(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Have GPTQ choose integers against the scales that are stored, rather than against more exact ones."""
    from gptqmodel.quantization.gptq import GPTQ, Quantizer

    class StoredScales(Quantizer):
        def find_params(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on
            super().find_params(*args, **kwargs)
            self.scale = as_stored(self.scale, dtype)

    def create_quantizer(self: Any, name: str) -> StoredScales:  # noqa: ANN401 - the package's own class
        return StoredScales(qcfg=self.qcfg, name=name)

    return replaced(GPTQ, create_quantizer=create_quantizer)


@contextmanager
def _taken_weights(model: nn.Module, seen: SeenRows, duo_scaling: bool) -> Generator[None]:
    """Copy weights when AWQ has scaled them, before it clips and rounds them."""
    from gptqmodel.looper import awq_processor

    names = {id(module): name for name, module in model.named_modules()}
    scale, start = awq_processor.apply_scale, awq_processor.AWQProcessor.__init__

    def apply_scale(layer: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on
        scale(layer, *args, **kwargs)
        seen.take({f"{names[id(layer)]}.{name}": module for name, module in layer.named_modules()})

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on
        start(self, *args, **kwargs)
        self.duo_scaling = duo_scaling

    with replaced(awq_processor, apply_scale=apply_scale), replaced(awq_processor.AWQProcessor, __init__=initialize):
        yield


def _watched_records(job: Job) -> AbstractContextManager[None]:
    """Say how far the work is whenever the package logs a module."""
    from gptqmodel.looper.loop_processor import LoopProcessor

    log = LoopProcessor.log_new_row

    def log_new_row(self: Any, stat: Mapping[str, Any]) -> None:  # noqa: ANN401 - the package's own class
        log(self, stat)
        loss = _number(stat.get("loss"))
        say_progress(job, job.layers[int(stat["layer"])], None if loss == NOT_INVERTED else loss)

    return replaced(LoopProcessor, log_new_row=log_new_row)


def _packed_in_blocks() -> AbstractContextManager[None]:
    """Have weights packed a few columns at a time: by default the package makes six 32-bit copies of all of them."""
    from gptqmodel.nn_modules.qlinear import PackableQuantLinear

    pack: Any = PackableQuantLinear.pack_block

    def pack_block(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the package's own class
        pack(self, *args, **{"block_in": PACKED_COLUMNS, **kwargs})

    return replaced(PackableQuantLinear, pack_block=pack_block)


def _disk_not_timed() -> AbstractContextManager[None]:
    """Keep the package from writing 100 MB to TMPDIR, from 64 MiB of memory, only to log how fast that was."""
    from gptqmodel.looper import module_looper

    return replaced(module_looper, io_write_performance=lambda: None)


def _records(job: Job, said: Mapping[str, list[Mapping[str, Any]]]) -> Iterator[ModuleRecord]:
    """Read the package's own table of modules."""
    for rows in said.values():
        for row in rows:
            yield ModuleRecord(
                module=f"{job.layers[int(row['layer'])]}.{row['module']}",
                seconds=float(row.get("time", 0.0)),
                error=_number(row.get("loss")),
                damping=_number(row.get("damp")),
                tokens=None if (tokens := _number(row.get("samples"))) is None else int(tokens),
                note=_note(job, row),
            )


def _note(job: Job, row: Mapping[str, Any]) -> str | None:
    """Say what became of a Hessian that could not be inverted as it was: the package goes on without a word."""
    if not isinstance(job.method, Gptq):
        return None
    damping = _number(row.get("damp"))
    if _number(row.get("loss")) == NOT_INVERTED:
        return "rounded to nearest: its Hessian cannot be inverted, whatever the damping"
    if damping is not None and damping > round(job.method.damping, 5):  # its table has five decimals
        return f"damping raised from {job.method.damping:g} to {damping:g} to invert its Hessian"
    return None


def _number(text: Any) -> float | None:  # noqa: ANN401 - a cell of the package's table
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


if __name__ == "__main__":
    run_child(quantize)
