"""What quantizing will take, before it is begun: peak memory, disk and roughly the time."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from mvquant.arch import ModelView
from mvquant.errors import UsageError
from mvquant.plan import FLOAT_BITS, ModulePlan, Plan
from mvquant.scheme import WeightScheme

COLUMN_SECONDS = 1e-3
"""What GPTQ takes for a column however few rows it has: a loop of small operations."""

_PROBE = 512
"""Rows and columns of the product that tells how fast the machine is."""

_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True)
class Needs:
    """What a quantization takes beyond what the process has already.

    Attributes:
        memory: bytes at the peak.
        layer: of these, what is run at once (one decoder layer, or all), what the method makes of it and works with.
        states: of these, hidden states between layers.
        disk: bytes in the work folder at the peak.
        operations: multiplications and additions in all.
        columns: that are worked on one after the other.
    """

    memory: int
    layer: int
    states: int
    disk: int
    operations: float
    columns: int = 0

    def seconds(self, operations_per_second: float) -> float:
        """Roughly how long it takes."""
        return self.operations / operations_per_second + self.columns * COLUMN_SECONDS

    def line(self, available: int, operations_per_second: float) -> str:
        """Say it in one line.

        >>> Needs(3 * 10**9, 2 * 10**9, 10**9, 4 * 10**9, 6e12).line(8 * 10**9, 1e11)
        'needs 3.0 GB of memory (weights 2.0 GB, hidden states 1.0 GB), of 8.0 GB free; 4.0 GB of disk; about 60 s'
        """
        return (
            f"needs {_size(self.memory)} of memory (weights {_size(self.layer)}, hidden states {_size(self.states)}), "
            f"of {_size(available)} free; {_size(self.disk)} of disk; about "
            f"{_duration(self.seconds(operations_per_second))}"
        )


def predict(
    plan: Plan,
    view: ModelView,
    lengths: Sequence[int],
    limit: int,
    *,
    processes: int = 1,
    whole: bool = False,
) -> Needs:
    """Predict what a process needs.

    Args:
        plan: what is to be done.
        view: the model's structure.
        lengths: tokens of every calibration sequence.
        limit: bytes of hidden states that may be in memory.
        processes: that share the sequences.
        whole: the method takes the whole model at once.
    """
    bytes_each = FLOAT_BITS[plan.dtype] // 8
    hidden: int = view.config.get_text_config().hidden_size
    tokens = -(-sum(lengths) // processes)
    all_states = tokens * hidden * bytes_each
    layer = max(_layer_bytes(plan, view, index, max(lengths)) for index in range(len(view.attentions)))
    states = min(limit, all_states)
    front = bytes_each * sum(prod(shape) for name, shape in _outside(view).items() if name not in view.tied)
    operations = sum(_layer_operations(plan, view, index, tokens) for index in range(len(view.attentions)))
    if whole:
        layer += plan.bytes_before
    disk = 2 * all_states + plan.bytes_after
    return Needs(max(layer, front) + states, layer, states, disk, operations, _loop_columns(plan))


def require_room(needs: Needs, available: int, disk: int) -> None:
    """Refuse what cannot fit.

    Raises:
        UsageError: with the numbers, and what makes it smaller.
    """
    if needs.memory > available:
        raise UsageError(
            f"this takes {_size(needs.memory)} of memory at the peak (weights and what the method works with "
            f"{_size(needs.layer)}, hidden states {_size(needs.states)}) and {_size(available)} are free: "
            "keep fewer hidden states in memory (--states-memory), or calibrate on fewer or shorter sequences"
        )
    if needs.disk > disk:
        raise UsageError(
            f"this takes {_size(needs.disk)} of disk beside the output and {_size(disk)} are free: "
            "choose another place, or calibrate on fewer or shorter sequences"
        )


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had: of the device, or of the machine within the limits of its container."""
    if device.type != "cpu":
        free, _ = torch.accelerator.get_memory_info(device)
        return free
    return min([_free_memory(), *_cgroup_room()])


def available_disk(folder: Path) -> int:
    """Bytes free where a folder is or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """How fast the machine multiplies matrices, from a product that takes milliseconds."""
    left = torch.ones(_PROBE, _PROBE, device=device, dtype=dtype)
    seconds: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        float((left @ left)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * _PROBE**3 / min(seconds)


def _layer_bytes(plan: Plan, view: ModelView, index: int, length: int) -> int:
    """One layer in memory, what was made of it, and the largest of what the method works with."""
    bytes_each = FLOAT_BITS[plan.dtype] // 8
    prefix = view.attentions[index].module.rpartition(".")[0] + "."
    shapes = [shape for name, shape in view.parameters.items() if name.startswith(prefix)]
    modules = [module for module in plan.modules if module.layer == index and module.scheme.is_quantized]
    weights = sum(prod(shape) for shape in shapes)
    largest = max(prod(shape) for shape in shapes)
    made = sum(module.weights + _kept_bytes(module, bytes_each) for module in modules)
    activations = length * 8 * max(max(shape) for shape in shapes) * bytes_each
    # rounding looks at a weight in float32, once as it was and once as it became
    working = max(_method_bytes(plan, modules), largest * max(8, 2 * bytes_each))
    return weights * bytes_each + made + activations + working


def _kept_bytes(module: ModulePlan, bytes_each: int) -> int:
    kept: WeightScheme | None = module.protected_scheme
    return 0 if kept is None else module.weights * (1 if kept.is_quantized else bytes_each)


def _method_bytes(plan: Plan, modules: Sequence[ModulePlan]) -> int:
    """Hessians of all inputs of a layer in float64, and what inverting the largest takes."""
    if plan.recipe.method.name != "gptq" or not modules:
        return 0
    largest = max(modules, key=lambda module: module.columns**2 + module.weights)
    hessians = sum(8 * columns**2 for columns in _inputs(modules))
    return hessians + 4 * 4 * largest.columns**2 + 3 * 4 * largest.weights


def _inputs(modules: Sequence[ModulePlan]) -> list[int]:
    """Columns of the different inputs of a layer: Q, K and V share one, gate and up another; experts have their own."""
    shared: dict[tuple[str, int], int] = {}
    for module in modules:
        count = module.shape[0] if module.kind == "experts" else 1
        parent, _, leaf = module.name.rpartition(".")
        own = leaf if leaf in ("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "dense", "dense_4h_to_h") else ""
        shared[f"{parent}.{own}", module.columns] = count
    return [columns for (_, columns), count in shared.items() for _ in range(count)]


def _layer_operations(plan: Plan, view: ModelView, index: int, tokens: int) -> float:
    """Two runs of the layer, and what the method does with its matrices."""
    modules = [module for module in plan.modules if module.layer == index and module.scheme.is_quantized]
    linear = sum(prod(weight.shape) for weight in view.weights if weight.layer == index)
    run = 2.0 * linear * tokens
    if plan.recipe.method.name == "gptq":
        hessians = sum(2.0 * tokens * columns**2 + 4 * columns**3 for columns in _inputs(modules))
        return 2 * run + hessians + sum(4.0 * module.weights * module.columns for module in modules)
    tried = getattr(plan.recipe.method, "grid_points", 0)
    return (2 + tried) * run


def _loop_columns(plan: Plan) -> int:
    """Columns that GPTQ goes through, again for protected rows."""
    if plan.recipe.method.name != "gptq":
        return 0
    return sum(
        module.columns * (module.shape[0] if module.kind == "experts" else 1) * (2 if module.protected else 1)
        for module in plan.modules
        if module.scheme.is_quantized
    )


def _outside(view: ModelView) -> dict[str, tuple[int, ...]]:
    """Parameters outside the decoder layers, the output head aside."""
    layers = view.attentions[0].module.partition(".0.")[0] + "."
    return {
        name: shape
        for name, shape in view.parameters.items()
        if not name.startswith(layers) and not name.startswith(("lm_head", "embed_out"))
    }


def _size(count: int) -> str:
    """Return bytes as a person reads them.

    >>> _size(3_000_000), _size(3_000_000_000)
    ('3 MB', '3.0 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    """Return a time as a person reads it.

    >>> _duration(0.2), _duration(100.0), _duration(3000.0), _duration(36000.0)
    ('1 s', '100 s', '50 minutes', '10 hours')
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def _cgroup_room() -> list[int]:
    """What a container may still take, where it has a limit."""
    found: list[int] = []
    for limit, usage in _CGROUP:
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
            found.append(int(text) - int(usage.read_text(encoding="ascii")))
    return found
