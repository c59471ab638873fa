"""What quantizing will take, before it is begun: peak memory, disk and roughly the time."""

from collections.abc import Sequence
from math import prod

from mvquant.arch import ModelView, WeightView
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.job import apart
from mvquant.backends.layer import HESSIAN_BYTES
from mvquant.backends.llmcompressor.awq import AwqSearch, awq_search
from mvquant.layerwise.needs import Needs
from mvquant.method_settings import AutoRound, Awq, MethodSettings
from mvquant.plan import FLOAT_BITS, ModulePlan, Plan
from mvquant.scheme import WeightScheme

PACKAGE_STATES = 2
"""Hidden states of all sequences that packages for whole models hold: what a layer gets, and what it gives."""

LEARNING_RUNS = 3
"""What a step of learning takes, in runs of the layer: forward, and back to the inputs and to the weights."""

LEARNING_BYTES = 16
"""Of a weight whose rounding is learnt, in float32: the value that is learnt, the best so far, and two more: of the
rounding, what autograd keeps for the way back; after it, the gradient and a copy of a value that is better still."""

ACTIVATIONS, LEARNING_ACTIVATIONS = 8, 14
"""Of a token, in its widest activations: what a run holds at once, and what autograd keeps (4 to 13, by the family)."""

COMPARED_OUTPUTS = 2
"""Of a module, outputs of all sequences that AWQ by llmcompressor holds: of its weights, and of those it tries."""

TRIED_BYTES = 8
"""Of a weight that AWQ tries: rounded and divided by its scales in float64, between two copies in the model's dtype."""


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
    searches = [_searches(plan, view, index) for index in layers]
    operations = sum(_layer_operations(plan, view, index, tokens, len(lengths), searches[index]) for index in layers)
    if package is not None:
        layer = _package_bytes(plan, view, lengths, package)
        return Needs(layer, 0, _package_disk(plan, package), operations, _loop_columns(plan), package.name)
    bytes_each = _bytes_each(plan)
    hidden = _hidden_size(view) * bytes_each
    layer = max(
        _layer_weights(view, index) * bytes_each
        + _layer_work(plan, view, index, lengths, bytes_each)
        + _search_bytes(plan, index, searches[index], tokens, bytes_each)
        for index in layers
    )
    kept = bytes_each * tokens * max(sum(search.columns for search in found) for found in searches)
    front = bytes_each * sum(prod(shape) for name, shape in _outside(view).items() if name not in view.tied)
    # of the last layer, no hidden states are kept: they are gone when the output is written
    disk = plan.bytes_after + max(2 * sum(lengths) * hidden, plan.bytes_after)
    states = min(limit, tokens * hidden)
    return Needs(max(layer, front), states, disk, operations, _loop_columns(plan), kept=kept)


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
    return weights + max(work + states, plan.bytes_after) + _seen_bytes(plan, package)


def _package_disk(plan: Plan, package: FolderBackend) -> int:
    """What the package saves, and first what it works with, then the output that is written from it.

    It works with other copies, and the model that it starts from where that is no file of the checkpoint but folded.
    """
    bytes_each = package.weight_bytes or _bytes_each(plan)
    saved = plan.bytes_after + plan.kept_parameters * (bytes_each - _bytes_each(plan))
    beside = (package.saved_copies - 1) * saved + (plan.bytes_before if plan.fold else 0)
    return saved + _seen_bytes(plan, package) + max(beside, plan.bytes_after)


def _seen_bytes(plan: Plan, package: FolderBackend) -> int:
    """Rows as AWQ scaled them, kept beside what it rounds: protected ones, and modules that mvquant rounds."""
    method = plan.recipe.method
    if not isinstance(method, Awq):
        return 0
    whole = {module.name for module in apart(plan)} if method.name in package.one_scheme else set[str]()
    rows = {each.name: each.rows if each.name in whole else len(each.protected_rows) for each in plan.modules}
    return _bytes_each(plan) * sum(rows[module.name] * module.columns for module in plan.modules)


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
    working = max(_method_bytes(plan, modules, bytes_each), largest * max(8, 2 * bytes_each))
    learning = _learning_bytes(plan.recipe.method, weights, widest, len(lengths), bytes_each)
    return made + ACTIVATIONS * widest + working + learning


def _kept_bytes(module: ModulePlan, bytes_each: int) -> int:
    kept: WeightScheme | None = module.protected_scheme
    return 0 if kept is None else module.weights * (1 if kept.is_quantized else bytes_each)


def _method_bytes(plan: Plan, modules: Sequence[ModulePlan], bytes_each: int) -> int:
    """What AWQ makes of the largest weight to try it; for GPTQ, Hessians and what inverting the largest takes.

    Hessians are those of a layer's inputs in float64, as many as are held at once.
    """
    method = plan.recipe.method.name
    if method == "awq":
        return (TRIED_BYTES + 2 * bytes_each) * max((prod(module.shape[-2:]) for module in modules), default=0)
    if method != "gptq" or not modules:
        return 0
    largest = max(modules, key=lambda module: module.columns**2 + module.weights)
    hessians = [8 * columns**2 for columns in _inputs(modules)]
    held = min(sum(hessians), max(HESSIAN_BYTES, *hessians))
    return held + 4 * 4 * largest.columns**2 + 3 * 4 * largest.weights


def _learning_bytes(method: MethodSettings, weights: int, widest: int, sequences: int, bytes_each: int) -> int:
    """What AutoRound holds of a layer to learn by gradients: for its weights, rounded and exact, and for a batch."""
    if not isinstance(method, AutoRound):
        return 0
    batch = min(method.batch_size, sequences)
    return weights * (LEARNING_BYTES + 2 * bytes_each) + batch * LEARNING_ACTIVATIONS * widest


def _inputs(modules: Sequence[ModulePlan]) -> list[int]:
    """Columns of the different inputs of a layer: Q, K and V share one, gate and up another; experts have their own."""
    shared: dict[tuple[str, int], int] = {}
    for module in modules:
        count = module.shape[0] if module.kind == "experts" else 1
        shared[_input_of(module.name), module.columns] = count
    return [columns for (_, columns), count in shared.items() for _ in range(count)]


def _input_of(name: str) -> str:
    """Return a name that weights with the same input have in common."""
    parent, _, leaf = name.rpartition(".")
    own = leaf if leaf in ("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "dense", "dense_4h_to_h") else ""
    return f"{parent}.{own}"


def _searches(plan: Plan, view: ModelView, index: int) -> list[AwqSearch]:
    """What AWQ by llmcompressor searches in a layer; nothing for other methods and packages."""
    method = plan.recipe.method
    if not isinstance(method, Awq) or method.backend != "llmcompressor":
        return []
    planned = {module.name for module in plan.modules if module.scheme.is_quantized}
    sharing: dict[str, list[WeightView]] = {}
    for weight in view.weights:
        if weight.layer == index:
            sharing.setdefault(_input_of(weight.name), []).append(weight)
    wanted = [weights for weights in sharing.values() if any(weight.name in planned for weight in weights)]
    return [search for weights in wanted if (search := awq_search(view, weights)) is not None]


def _search_bytes(plan: Plan, index: int, searches: Sequence[AwqSearch], tokens: int, bytes_each: int) -> int:
    """What AWQ holds while it searches, beside inputs: outputs, weights as they were, and experts one by one."""
    if not searches:
        return 0
    outputs = COMPARED_OUTPUTS * tokens * max(search.rows for search in searches)
    modules = (module for module in plan.modules if module.layer == index and module.scheme.is_quantized)
    experts = sum(module.weights for module in modules if module.kind == "experts")
    return bytes_each * (outputs + max(search.copied for search in searches) + experts)


def _layer_operations(
    plan: Plan, view: ModelView, index: int, tokens: int, sequences: int, searches: Sequence[AwqSearch]
) -> float:
    """Two runs of the layer, those of what the method tries, and what it does with matrices."""
    modules = [module for module in plan.modules if module.layer == index and module.scheme.is_quantized]
    linear = sum(prod(weight.shape) for weight in view.weights if weight.layer == index)
    run = 2.0 * linear * tokens
    if plan.recipe.method.name == "gptq":
        hessians = sum(2.0 * tokens * columns**2 + 4 * columns**3 for columns in _inputs(modules))
        return 2 * run + hessians + sum(4.0 * module.weights * module.columns for module in modules)
    searched = sum(search.run for search in searches) / linear
    return (2 + _runs_tried(plan.recipe.method, sequences, searched)) * run


def _runs_tried(method: MethodSettings, sequences: int, searched: float) -> float:
    """Runs of a layer on all sequences that a method takes to choose; a step of learning goes over a batch of them.

    Args:
        method: with its settings.
        sequences: of calibration.
        searched: what AWQ by llmcompressor runs for an exponent, as a share of the layer.
    """
    if isinstance(method, AutoRound):
        return LEARNING_RUNS * method.iterations * min(method.batch_size, sequences) / sequences
    if not isinstance(method, Awq):
        return 0.0
    # it runs the weights as they were as well
    return (method.grid_points + 1) * searched if method.backend == "llmcompressor" else float(method.grid_points)


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
