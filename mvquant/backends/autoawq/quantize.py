"""What runs AutoAWQ on a job, in a child process or a worker. Importing this module does not import the package."""

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mvquant.backends.folder.child import SeenRows, as_stored, run_child, say_progress
from mvquant.backends.folder.job import Job, load_tokens
from mvquant.backends.layer import ModuleRecord
from mvquant.backends.replaced import replaced
from mvquant.method_settings import Awq


def quantize(job: Job) -> list[ModuleRecord]:
    """Quantize a model with AWQ at 4 bits with zero points, and save it."""
    from awq import AutoAWQForCausalLM

    assert isinstance(job.method, Awq)
    load: Any = AutoAWQForCausalLM.from_pretrained
    dtype: torch.dtype = getattr(torch, job.dtype)
    tokens = [batch[0].tolist() for batch in load_tokens(job.tokens)]
    model: Any = load(str(job.source), torch_dtype=dtype, trust_remote_code=False, device_map="cpu")
    seen, records = SeenRows(job.kept), _Records(model.model, job)
    with _watched_layers(job, model.model, seen, records):
        model.quantize(
            None,
            quant_config={"zero_point": True, "q_group_size": job.scheme.group_size, "w_bit": 4, "version": "GEMM"},
            calib_data=tokens,
            duo_scaling=job.method.duo_scaling,
            max_calib_samples=len(tokens),
            max_calib_seq_len=len(tokens[0]),
            quantizer_cls=_quantizer(dtype, records),
        )
    model.save_quantized(str(job.out))
    seen.save(job.seen)
    return records.of_all()


class _Records:
    """What became of every linear that the package quantizes: the package itself keeps nothing."""

    def __init__(self, model: nn.Module, job: Job) -> None:
        linears = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
        self._names = {id(each): name for name, each in linears.items()}
        self._planned = [name for name in linears if name.startswith(job.layers) and name not in job.ignored]
        self._tokens = sum(batch.numel() for batch in load_tokens(job.tokens))
        self._found: dict[str, ModuleRecord] = {}

    def searched(self, linears: Sequence[nn.Module], error: float, seconds: float) -> None:
        """Keep what a search over the scales of these linears, which share an input, has found."""
        for name in (self._names[id(linear)] for linear in linears):
            self._found[name] = ModuleRecord(
                module=name, seconds=seconds / len(linears), error=error, tokens=self._tokens
            )

    def loss_of(self, layer: str) -> float | None:
        """Return the mean loss of what was searched in a layer; None if nothing was."""
        found = self._found.values()
        losses = [each.error for each in found if each.error is not None and each.module.startswith(f"{layer}.")]
        return sum(losses) / len(losses) if losses else None

    def of_all(self) -> list[ModuleRecord]:
        """Return a record of every linear, in the model's order."""
        rounded = "rounded to nearest: AWQ scales no input of it in this family"
        return [self._found.get(name, ModuleRecord(module=name, seconds=0.0, note=rounded)) for name in self._planned]


def _quantizer(dtype: torch.dtype, records: _Records) -> type:
    """The package's quantizer, mended for CPUs, with integers chosen against the scales that are stored."""
    from awq.quantize.quantizer import AwqQuantizer

    class StoredScales(AwqQuantizer):
        def _compute_best_scale(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - handed on
            self.losses, start = list[float](), time.monotonic()
            with _own_copy(args[3]):
                best = super()._compute_best_scale(*args, **kwargs)
            records.searched(args[4], min(self.losses), time.monotonic() - start)
            return best

        def _compute_loss(self, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401 - handed on
            self.losses.append(super()._compute_loss(*args, **kwargs))
            return self.losses[-1]

        def pseudo_quantize_tensor(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            groups = w.reshape(-1, self.group_size) if self.group_size > 0 else w
            low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
            scale = as_stored((high - low).clamp(min=1e-5) / 15, dtype)
            zero = (-torch.round(low / scale)).clamp_(0, 15)
            rounded = (torch.clamp(torch.round(groups / scale) + zero, 0, 15) - zero) * scale
            return rounded.reshape(w.shape), scale.view(len(w), -1), zero.view(len(w), -1)

    return StoredScales


@contextmanager
def _own_copy(module: Any) -> Generator[None]:  # noqa: ANN401 - its method is replaced
    """Have a module's `state_dict` be a copy.

    The package restores weights from it after every candidate scale that it tries in place. On a CPU it shares their
    memory, so that the first candidate would stay in the weights, and no norm be divided by it.
    """
    shared = module.state_dict()
    module.state_dict = lambda: {name: tensor.clone() for name, tensor in shared.items()}
    try:
        yield
    finally:
        del module.state_dict


def _watched_layers(job: Job, model: nn.Module, seen: SeenRows, records: _Records) -> AbstractContextManager[None]:
    """Copy weights when AWQ has scaled them, before it clips and rounds them, and say how far the work is."""
    from awq.quantize import quantizer

    names = {id(module): name for name, module in model.named_modules()}
    scale = quantizer.apply_scale

    def apply_scale(layer: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed on
        scale(layer, *args, **kwargs)
        name = names[id(layer)]
        seen.take({f"{name}.{local}": module for local, module in layer.named_modules()})
        say_progress(job, name, records.loss_of(name))

    return replaced(quantizer, apply_scale=apply_scale)


if __name__ == "__main__":
    run_child(quantize)
