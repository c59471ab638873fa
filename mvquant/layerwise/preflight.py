"""What quantizing will take, before it is begun: peak memory, disk and roughly the time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from mvquant.arch import ModelView
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.layer import HESSIAN_BYTES
from mvquant.errors import UsageError
from mvquant.layerwise.room import Room
from mvquant.method_settings import AutoRound, Awq, MethodSettings
from mvquant.plan import FLOAT_BITS, ModulePlan, Plan
from mvquant.scheme import WeightScheme

COLUMN_SECONDS = 1e-3
"""What GPTQ takes for a column however few rows it has: a loop of small operations."""

PACKAGE_STATES = 2
"""Hidden states of all sequences that packages for whole models hold: what a layer gets, and what it gives."""

LEARNING_RUNS = 3
"""What a step of learning takes, in runs of the layer: forward, and back to the inputs and to the weights."""

LEARNING_BYTES = 16
"""Of a weight whose rounding is learnt, in float32: the value that is learnt, the best so far, and two more: of the
rounding, what autograd keeps for the way back; after it, the gradient and a copy of a value that is better still."""

ACTIVATIONS, LEARNING_ACTIVATIONS = 8, 14
"""Of a token, in its widest activations: what a run holds at once, and what autograd keeps (4 to 13, by the family)."""


@dataclass(frozen=True)
class Needs:
    """What a quantization takes beyond what the process has already.

    Attributes:
        layer: bytes of what is run at once (one decoder layer, or all), what the method makes of it and works with; on
            the device, where there is one.
        states: bytes of hidden states between layers, which lie in the machine's memory.
        disk: bytes at the peak: in the work folder, and of the output that is written while it is still there.
        operations: multiplications and additions in all.
        columns: that are worked on one after the other.
        package: that holds the whole model, if one does.
    """

    layer: int
    states: int
    disk: int
    operations: float
    columns: int = 0
    package: str | None = None

    @property
    def memory(self) -> int:
        """Bytes at the peak, where all of them lie in the machine's memory."""
        return self.layer + self.states

    def seconds(self, operations_per_second: float) -> float:
        """Roughly how long it takes."""
        return self.operations / operations_per_second + self.columns * COLUMN_SECONDS

    def line(self, room: Room, operations_per_second: float) -> str:
        """Say it in one line.

        >>> needs = Needs(2 * 10**9, 10**9, 4 * 10**9, 6e12)
        >>> needs.line(Room(memory=8 * 10**9, disk=10**12), 1e11)
        'needs 3.0 GB of memory (weights 2.0 GB, hidden states 1.0 GB), of 8.0 GB free; 4.0 GB of disk; about 60 s'
        """
        return (
            f"needs {self._memory_line(room)}; {_size(self.disk)} of disk; about "
            f"{_duration(self.seconds(operations_per_second))}"
        )

    def _memory_line(self, room: Room) -> str:
        memory = f"{_size(self.memory)} of memory"
        if self.package is not None:
            return f"{memory} ({self.package} holds the whole model), of {_size(room.memory)} free"
        if room.device is None:
            parts = f"weights {_size(self.layer)}, hidden states {_size(self.states)}"
            return f"{memory} ({parts}), of {_size(room.memory)} free"
        return (
            f"{_size(self.layer)} of the device's memory, of {_size(room.device)} free; {_size(self.states)} of memory "
            f"for hidden states, of {_size(room.memory)} free"
        )


def predict(
    plan: Plan,
    view: ModelView,
    lengths: Sequence[int],
    limit: int,
    *,
    processes: int = 1,
    package: FolderBackend | None = None,
) -> Needs:
    """Predict what a process needs; of disk, what all of them do.

    Args:
        plan: what is to be done.
        view: the model's structure.
        lengths: tokens of every calibration sequence.
        limit: bytes of hidden states that may be in memory.
        processes: that share the sequences.
        package: what takes the whole model at once, if that is the method's way.
    """
    tokens, layers = -(-sum(lengths) // processes), range(len(view.attentions))
    operations = sum(_layer_operations(plan, view, index, tokens, len(lengths)) for index in layers)
    if package is not None:
        layer = _package_bytes(plan, view, lengths, package)
        return Needs(layer, 0, _package_disk(plan, package), operations, _loop_columns(plan), package.name)
    bytes_each = _bytes_each(plan)
    hidden = _hidden_size(view) * bytes_each
    layer = max(
        _layer_weights(view, index) * bytes_each + _layer_work(plan, view, index, lengths, bytes_each)
        for index in layers
    )
    front = bytes_each * sum(prod(shape) for name, shape in _outside(view).items() if name not in view.tied)
    # of the last layer, no hidden states are kept: they are gone when the output is written
    disk = plan.bytes_after + max(2 * sum(lengths) * hidden, plan.bytes_after)
    return Needs(max(layer, front), min(limit, tokens * hidden), disk, operations, _loop_columns(plan))


def require_room(needs: Needs, room: Room) -> None:
    """Refuse what cannot fit.

    Raises:
        UsageError: with the numbers, and what makes it smaller.
    """
    for what, taken, free, way_out in _demands(needs, room):
        if taken > free:
            raise UsageError(f"this takes {_size(taken)} of {what} and {_size(free)} are free: {way_out}")


def _demands(needs: Needs, room: Room) -> Iterator[tuple[str, int, int, str]]:
    """What is needed: a name, bytes, bytes free, and the way out if they do not suffice."""
    shorter = "calibrate on fewer or shorter sequences"
    fewer_states = f"keep fewer hidden states in memory (--states-memory), or {shorter}"
    weights = "weights and what the method works with"
    if needs.package is not None:
        by_layers = "use a backend that works layer by layer (llmcompressor, for gptq and awq)"
        what = f"memory at the peak ({needs.package} holds the whole model)"
        yield what, needs.memory, room.memory, f"{by_layers}, or {shorter}"
        yield "disk for the output and its work folder", needs.disk, room.disk, f"choose another place, or {by_layers}"
        return
    if room.device is None:
        parts = f"{weights} {_size(needs.layer)}, hidden states {_size(needs.states)}"
        yield f"memory at the peak ({parts})", needs.memory, room.memory, fewer_states
    else:
        device = f"the device's memory at the peak ({weights})"
        yield device, needs.layer, room.device, "calibrate on shorter sequences, or on the CPU (--device cpu)"
        yield "memory for hidden states", needs.states, room.memory, fewer_states
    yield "disk for the output and its work folder", needs.disk, room.disk, f"choose another place, or {shorter}"


def _bytes_each(plan: Plan) -> int:
    return FLOAT_BITS[plan.dtype] // 8


def _hidden_size(view: ModelView) -> int:
    return view.config.get_text_config().hidden_size


def _package_bytes(plan: Plan, view: ModelView, lengths: Sequence[int], package: FolderBackend) -> int:
    """The whole model as the package holds it, and what it works with on a layer, or packs in the end."""
    bytes_each = package.weight_bytes or _bytes_each(plan)
    weights = (plan.weights + plan.kept_parameters) * bytes_each
    # learning compares what a layer gives with what it gave when nothing before it was rounded
    held = PACKAGE_STATES + isinstance(plan.recipe.method, AutoRound)
    states = held * sum(lengths) * _hidden_size(view) * bytes_each
    work = max(_layer_work(plan, view, index, lengths, bytes_each) for index in range(len(view.attentions)))
    return weights + max(work + states, plan.bytes_after)


def _package_disk(plan: Plan, package: FolderBackend) -> int:
    """What the package saves, and first what it works with, then the output that is written from it.

    It works with other copies, and the model that it starts from where that is no file of the checkpoint but folded.
    """
    bytes_each = package.weight_bytes or _bytes_each(plan)
    saved = plan.bytes_after + plan.kept_parameters * (bytes_each - _bytes_each(plan))
    beside = (package.saved_copies - 1) * saved + (plan.bytes_before if plan.fold else 0)
    return saved + max(beside, plan.bytes_after)


def _layer_weights(view: ModelView, index: int) -> int:
    return sum(prod(shape) for shape in _layer_shapes(view, index))


def _layer_shapes(view: ModelView, index: int) -> list[tuple[int, ...]]:
    prefix = view.attentions[index].module.rpartition(".")[0] + "."
    return [shape for name, shape in view.parameters.items() if name.startswith(prefix)]


def _layer_work(plan: Plan, view: ModelView, index: int, lengths: Sequence[int], bytes_each: int) -> int:
    """Beside the weights of a layer: what was made of it, and the largest of what the method works with."""
    shapes = _layer_shapes(view, index)
    modules = [module for module in plan.modules if module.layer == index and module.scheme.is_quantized]
    largest = max(prod(shape) for shape in shapes)
    weights = sum(module.weights for module in modules)
    made = weights + sum(_kept_bytes(module, bytes_each) for module in modules)
    widest = max(lengths) * max(max(shape) for shape in shapes) * bytes_each
    # rounding looks at a weight in float32, once as it was and once as it became
    working = max(_method_bytes(plan, modules), largest * max(8, 2 * bytes_each))
    learning = _learning_bytes(plan.recipe.method, weights, widest, len(lengths), bytes_each)
    return made + ACTIVATIONS * widest + working + learning


def _kept_bytes(module: ModulePlan, bytes_each: int) -> int:
    kept: WeightScheme | None = module.protected_scheme
    return 0 if kept is None else module.weights * (1 if kept.is_quantized else bytes_each)


def _method_bytes(plan: Plan, modules: Sequence[ModulePlan]) -> int:
    """Hessians of a layer's inputs in float64, as many as are held at once, and what inverting the largest takes."""
    if plan.recipe.method.name != "gptq" or not modules:
        return 0
    largest = max(modules, key=lambda module: module.columns**2 + module.weights)
    hessians = [8 * columns**2 for columns in _inputs(modules)]
    held = min(sum(hessians), max(HESSIAN_BYTES, *hessians))
    return held + 4 * 4 * largest.columns**2 + 3 * 4 * largest.weights


def _learning_bytes(method: MethodSettings, weights: int, widest: int, sequences: int, bytes_each: int) -> int:
    """What AutoRound holds of a layer to learn by gradients: for its weights, rounded ones too, and for a batch."""
    if not isinstance(method, AutoRound):
        return 0
    batch = min(method.batch_size, sequences)
    return weights * (LEARNING_BYTES + bytes_each) + batch * LEARNING_ACTIVATIONS * widest


def _inputs(modules: Sequence[ModulePlan]) -> list[int]:
    """Columns of the different inputs of a layer: Q, K and V share one, gate and up another; experts have their own."""
    shared: dict[tuple[str, int], int] = {}
    for module in modules:
        count = module.shape[0] if module.kind == "experts" else 1
        parent, _, leaf = module.name.rpartition(".")
        own = leaf if leaf in ("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "dense", "dense_4h_to_h") else ""
        shared[f"{parent}.{own}", module.columns] = count
    return [columns for (_, columns), count in shared.items() for _ in range(count)]


def _layer_operations(plan: Plan, view: ModelView, index: int, tokens: int, sequences: int) -> float:
    """Two runs of the layer, those of what the method tries, and what it does with matrices."""
    modules = [module for module in plan.modules if module.layer == index and module.scheme.is_quantized]
    linear = sum(prod(weight.shape) for weight in view.weights if weight.layer == index)
    run = 2.0 * linear * tokens
    if plan.recipe.method.name == "gptq":
        hessians = sum(2.0 * tokens * columns**2 + 4 * columns**3 for columns in _inputs(modules))
        return 2 * run + hessians + sum(4.0 * module.weights * module.columns for module in modules)
    return (2 + _runs_tried(plan.recipe.method, sequences)) * run


def _runs_tried(method: MethodSettings, sequences: int) -> float:
    """Runs of a layer on all sequences that a method takes to choose; a step of learning goes over a batch of them."""
    if isinstance(method, AutoRound):
        return LEARNING_RUNS * method.iterations * min(method.batch_size, sequences) / sequences
    return method.grid_points if isinstance(method, Awq) else 0.0


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
