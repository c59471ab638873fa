"""The child process that runs auto-gptq, in its own environment: `python -I worker.py JOB...`.

It imports nothing of mvquant, which the environment does not have. auto-gptq 0.7.1 is archived; what it lacks is
put right here, and nowhere in its files:

- it moves every layer to `CUDA_0`, a constant, and waits for the GPU: the constant becomes the CPU, waiting nothing;
- its stand-in for the first layer lacks the attribute `attention_type` that newer models ask layers for;
- scales become what the checkpoint can hold before integers are chosen, and no zero point is 0, which its format
  cannot say (it stores them less one, and packs -1 over its neighbours);
- a Hessian that cannot be inverted is damped more, and more, instead of ending hours of work.
"""

import functools
import importlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

PROGRESS = "mvquant-progress"
LOGITS_TOLERANCE = 1e-4
"""Largest difference of logits, relative to their standard deviation; other arithmetic differs by a hundredth of it."""

LARGEST_DAMPING = 1.0
FP16_SMALLEST = 2.0**-24
WATCH_SECONDS = 1.0


def main() -> None:
    """Do the jobs whose files are the arguments."""
    sys.addaudithook(_refuse_network)
    end_with_parent()
    for file in sys.argv[1:]:
        _do(json.loads(Path(file).read_text(encoding="utf-8")))


def _do(job: dict[str, Any]) -> None:
    """Quantize the model of a job, and save what auto-gptq makes of it."""
    torch.manual_seed(job["seed"])
    random.seed(job["seed"])
    model = AutoModelForCausalLM.from_pretrained(job["source"], torch_dtype=torch.float32, local_files_only=True)
    model.eval()
    require_same_logits(model, load_file(Path(job["source"]) / "probe.safetensors"))
    records = quantize(model, job)
    Path(job["records"]).write_text(json.dumps(records), encoding="utf-8")


def require_same_logits(model: nn.Module, probe: dict[str, Tensor]) -> None:
    """Refuse a model that computes something else here than it does in mvquant's environment.

    Raises:
        SystemExit: it does: a config was not understood, such as a RoPE base that was ignored.
    """
    with torch.inference_mode():
        here = model(probe["tokens"]).logits.float()
    there = probe["logits"]
    difference = ((here - there).abs().max() / there.std()).item()
    if not difference <= LOGITS_TOLERANCE:
        raise SystemExit(
            f"the model gives other logits in auto-gptq's environment than in mvquant's, by {difference:.2g} of their "
            "standard deviation: its config was not understood, and it is not quantized; use backend llmcompressor"
        )


def quantize(model: Any, job: dict[str, Any]) -> list[dict[str, Any]]:  # noqa: ANN401 - of a family that auto-gptq knows
    """Run auto-gptq, save its checkpoint, and return what there is to say of every module."""
    names = {id(module): name for name, module in model.named_modules()}
    ignored = {id(model.get_submodule(name)) for name in job["ignored"]}
    base = _package("modeling._base")
    records: list[dict[str, Any]] = []
    with_done = functools.partial(_done, job["layers"], records)
    prepare_package(base, job, ignored, names, with_done)
    method, scheme = job["method"], job["scheme"]
    config = base.BaseQuantizeConfig(
        bits=scheme["bits"],
        group_size=scheme["group_size"],
        damp_percent=method["damping"],
        desc_act=method["activation_order"],
        static_groups=method["activation_order"],
        sym=scheme["symmetric"],
        model_file_base_name="model",
    )
    wrapped = _package("modeling.auto").GPTQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](model, False, config)
    # calibration sequences have one length: nothing is padded, but the package multiplies with the id of padding
    model.config.pad_token_id = 1
    tokens = load_file(job["tokens"])
    examples = [tokens[str(number)] for number in range(len(tokens))]
    wrapped.quantize([{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in examples])
    wrapped.save_quantized(job["out"], use_safetensors=True)
    return records


def prepare_package(
    base: Any,  # noqa: ANN401 - the package's module
    job: dict[str, Any],
    ignored: set[int],
    names: dict[int, str],
    done: Callable[[dict[str, Any]], None],
) -> None:
    """Put right what auto-gptq lacks, see the top of this file."""
    cpu = torch.device("cpu")
    for module in (base, _package("modeling._utils"), _package("modeling._const")):
        module.CUDA_0 = cpu
    torch.cuda.synchronize = _wait_for_nothing
    nn.Module.attention_type = "full_attention"  # pyright: ignore[reportAttributeAccessIssue]
    find_layers = _package("modeling._utils").find_layers

    def find_planned_layers(module: nn.Module) -> dict[str, nn.Module]:
        return {name: found for name, found in find_layers(module).items() if id(found) not in ignored}

    base.find_layers = find_planned_layers
    base.GPTQ = recording_gptq(job, names, done)


def recording_gptq(
    job: dict[str, Any], names: dict[int, str], done: Callable[[dict[str, Any]], None]
) -> Callable[[nn.Module], Any]:
    """Return the package's GPTQ of one matrix, with grids that can be stored, and a record of what it did."""
    package = _package("quantization.gptq")
    dtype = getattr(torch, job["dtype"])
    losses = _Losses(package.logger)

    class StorableQuantizer(package.Quantizer):
        def find_params(self, x: Tensor, weight: bool = False) -> None:
            super().find_params(x, weight=weight)
            self.scale, self.zero = storable(self.scale, self.zero, int(self.maxq), dtype)

    class RecordingGptq(package.GPTQ):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__(layer)
            self.quantizer = StorableQuantizer()
            self.tokens = 0

        def add_batch(self, inp: Tensor, out: Tensor) -> None:
            self.tokens += inp.numel() // inp.shape[-1]
            super().add_batch(inp, out)

        def fasterquant(self, *, percdamp: float, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
            name, start = names[id(self.layer)], time.perf_counter()
            if not bool(torch.isfinite(self.H).all()):
                raise SystemExit(f"{name}: its calibration inputs hold NaN or infinite values")
            run = functools.partial(super().fasterquant, blocksize=job["method"]["block_size"], **settings)
            made, damping = damped(self, run, percdamp)
            raised = f"damping raised from {percdamp:g} to {damping:g} to invert its Hessian"
            done(
                {
                    "module": name,
                    "seconds": time.perf_counter() - start,
                    "error": losses.last,
                    "damping": damping,
                    "tokens": self.tokens,
                    "note": raised if damping > percdamp else None,
                }
            )
            return made

    return RecordingGptq


def damped(gptq: Any, run: Callable[..., Any], damping: float) -> tuple[Any, float]:  # noqa: ANN401
    """Run GPTQ, with tenfold damping for as long as its Hessian cannot be inverted.

    Raises:
        LinAlgError: not even with the largest damping.
    """
    hessian = gptq.H.clone()
    while True:
        try:
            return run(percdamp=damping), damping
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            if damping * 10 > LARGEST_DAMPING:
                raise
            damping *= 10
            gptq.H = hessian.clone()


def storable(scale: Tensor, zero: Tensor, largest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round scales to values that float16 and the model's dtype both hold; move zero points of 0 to 1.

    Args:
        scale: of a step.
        zero: integer that stands for 0.
        largest: integer; a group without negative weights loses one, so that zero can be 1.
        dtype: of the model.
    """
    scale = torch.where(zero < 1, scale * largest / (largest - 1), scale)
    # The coarser significand first: what bfloat16 holds is exact in float16, so nothing is rounded twice.
    stored = scale.to(dtype).to(torch.float16).to(scale.dtype)
    return torch.where(stored == 0, torch.full_like(stored, FP16_SMALLEST), stored), zero.clamp(min=1)


class _Losses(logging.Handler):
    """Reads the loss of the last matrix from the package's log, the only place where it says it."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.last: float | None = None
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if said.startswith("avg loss: "):
            self.last = float(said.removeprefix("avg loss: "))


def _done(layers: list[str], records: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Keep a record, and say which layer is at work."""
    records.append(record)
    for number, layer in enumerate(layers, start=1):
        if record["module"].startswith(f"{layer}."):
            loss = "" if record["error"] is None else f" loss {record['error']:.3g}"
            sys.stdout.write(f"\n{PROGRESS} {number} {len(layers)} {layer}{loss}\n")
            sys.stdout.flush()


def _package(module: str) -> Any:  # noqa: ANN401 - not installed where types are checked
    return importlib.import_module(f"auto_gptq.{module}")


def _wait_for_nothing(device: object = None) -> None:
    """Stand in for `torch.cuda.synchronize`."""
    del device


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Let nothing phone home."""
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        raise PermissionError(f"{event}: a quantizer has no business on the network")


def end_with_parent() -> None:
    """Kill this process, with its group if it leads one, when mvquant's process ends, however it does."""
    # mvquant says which process that is: it can be gone before this one looks
    parent = int(os.environ.get("MVQUANT_PARENT") or os.getppid())
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    leads = os.getpgrp() == os.getpid()
    (os.killpg if leads else os.kill)(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
