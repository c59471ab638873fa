"""Quantizing layer by layer: a backend gets one decoder layer at a time, and the next sees what became of it.

Peak memory is one layer, what the backend makes of it, and the hidden states up to a limit.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mvquant.backends.layer import CalibratedLayer, LayerBackend, LayerResult, ModuleRecord, RoundedModule
from mvquant.errors import BackendError, CalibrationError, CheckpointError
from mvquant.layerwise.hidden import DEFAULT_LIMIT, HiddenStates
from mvquant.layerwise.model import LayerModel
from mvquant.layerwise.processes import ALONE, SharedWork, share
from mvquant.layerwise.work import StoredResults, WorkFolder
from mvquant.plan import ModulePlan, Plan
from mvquant.progress import Progress
from mvquant.quant import mixed_state


def quantize_layers(
    model: LayerModel,
    plan: Plan,
    batches: Sequence[Int64[Tensor, "1 _"]],
    backend: LayerBackend,
    work: WorkFolder,
    *,
    processes: SharedWork = ALONE,
    limit: int = DEFAULT_LIMIT,
    progress: Progress | None = None,
) -> StoredResults:
    """Quantize every planned weight, going on where the work folder stops.

    Every layer is calibrated on what the layers before it give with their weights in the base scheme (or as they were,
    if that is the method's way), whichever of their rows are protected: so protecting rows leaves the integers of all
    others as they are. A module that is protected whole has another base scheme, which later layers see.

    Args:
        model: the model, with what the plan folds.
        plan: what to do.
        batches: all calibration sequences, in every process.
        backend: the method.
        work: the folder of this work.
        processes: those that share the sequences.
        limit: bytes of hidden states held in memory, in this process.
        progress: told of every layer.

    Raises:
        CalibrationError: NaN in hidden states, or inputs that the backend cannot use.
        CheckpointError: weights that are NaN or cannot be read; a full disk.
        BackendError: the package failed, or left something out.
    """
    mine = share(batches, processes)
    states = HiddenStates(limit)
    first = work.finished
    _prepare(model, mine, states, work, first)
    shown = ""
    for index in range(first, len(model)):
        if progress:
            progress(shown, index, len(model))
        shown = _loss(_quantize_layer(model, index, plan, backend, states, work, processes))
    if progress:
        progress(shown, len(model), len(model))
    return work.results(len(model))


def _quantize_layer(
    model: LayerModel,
    index: int,
    plan: Plan,
    backend: LayerBackend,
    states: HiddenStates,
    work: WorkFolder,
    processes: SharedWork,
) -> Sequence[ModuleRecord]:
    """Quantize a layer, leave the inputs of the next, and write down what was done; nothing else stays in memory."""
    planned = tuple(module for module in plan.modules if module.layer == index and module.scheme.is_quantized)
    result = _backend_result(model, index, planned, backend, states, processes)
    _run_on(model, index, _replacements(model, planned, result) if backend.sees_rounded else {}, states, work)
    processes.wait()
    if processes.rank == 0:
        work.finish_layer(index, _states(planned, result), result.parameters, result.records)
        work.forget_inputs(but=index + 1)
    processes.wait()
    return result.records


def _prepare(model: LayerModel, mine: Mapping[int, Tensor], states: HiddenStates, work: WorkFolder, first: int) -> None:
    """Have the inputs of the first layer that is to be done."""
    if first == len(model):
        return
    if first == 0:
        for number, hidden in zip(mine, model.embedded(mine.values()), strict=True):
            states.write(number, hidden, work.inputs(0), also_file=True)
    else:
        model.learn_calls(mine.values())
        states.take_up(mine, work.inputs(first))


def _backend_result(
    model: LayerModel,
    index: int,
    planned: tuple[ModulePlan, ...],
    backend: LayerBackend,
    states: HiddenStates,
    processes: SharedWork,
) -> LayerResult:
    if not planned:
        return LayerResult({})
    with model.layer(index) as module:

        def run() -> Iterator[Float[Tensor, "1 length hidden"]]:
            for number in states:
                yield model.run_layer(index, states.read(number))

        layer = CalibratedLayer(
            index=index,
            name=model.layer_name(index),
            module=module,
            modules=planned,
            config=model.model.config,
            run=run,
            processes=processes,
        )
        _require_finite_weights(layer)
        result = backend.quantize(layer)
    _require_complete(planned, result)
    return result


def _run_on(
    model: LayerModel, index: int, replaced: Mapping[str, Tensor], states: HiddenStates, work: WorkFolder
) -> None:
    """Turn the inputs of a layer into those of the next."""
    if index + 1 == len(model):
        return
    with model.layer(index, replaced):
        for number in states:
            hidden = model.run_layer(index, states.read(number))
            if not bool(hidden.isfinite().all()):
                raise CalibrationError(
                    f"{model.layer_name(index)} gives NaN or infinite values on calibration sequence {number}, with "
                    f"its weights quantized: float16 may be too narrow for this model, convert it to bfloat16"
                )
            states.write(number, hidden, work.inputs(index + 1), also_file=True)


def _replacements(model: LayerModel, planned: Sequence[ModulePlan], result: LayerResult) -> dict[str, Tensor]:
    """What the parameters of a layer are to the layers after it: all rows in the base scheme."""
    weights = {weight.name: weight for weight in model.view.weights}
    found = dict(result.parameters)
    for module in planned:
        flat = result.modules[module.name].base.dequantize(module.scheme, model.dtype)
        value = flat.view(module.shape)
        found[weights[module.name].parameter] = value.T if weights[module.name].transposed else value
    return found


def _states(planned: Sequence[ModulePlan], result: LayerResult) -> dict[str, dict[str, Tensor]]:
    return {module.name: _state(module, result.modules[module.name]) for module in planned}


def _state(module: ModulePlan, rounded: RoundedModule) -> dict[str, Tensor]:
    return mixed_state(
        rounded.base,
        module.scheme,
        rounded.kept,
        module.protected_scheme,
        module.protected_rows,
        rounded.input_scale,
    )


def _require_finite_weights(layer: CalibratedLayer) -> None:
    for name, parameter in layer.module.named_parameters():
        if not all(torch.isfinite(extreme) for extreme in parameter.aminmax()):
            count = int((~torch.isfinite(parameter)).sum())
            raise CheckpointError(
                f"{layer.name}.{name}: {count} of {parameter.numel()} weights are NaN or infinite: mend the model"
            )


def _require_complete(planned: Sequence[ModulePlan], result: LayerResult) -> None:
    """Refuse what would make a checkpoint that cannot be loaded."""
    for module in planned:
        made = result.modules.get(module.name)
        if made is None:
            raise BackendError(f"{module.name} is planned, and the method returned nothing for it")
        if tuple(made.base.integers.shape) != (module.rows, module.columns):
            raise BackendError(
                f"{module.name}: the method returned integers of shape {tuple(made.base.integers.shape)}, "
                f"not {(module.rows, module.columns)}"
            )
        if module.protected_rows and made.kept is None:
            raise BackendError(f"{module.name}: the method returned nothing for its protected rows")
        if (module.scheme.activations == "tensor") != (made.input_scale is not None):
            raise BackendError(f"{module.name}: {module.scheme.name} and the scale of its inputs do not go together")
        if not bool(made.base.grid.scale.isfinite().all()):
            raise BackendError(f"{module.name}: the method returned scales that are NaN or infinite")


def _loss(records: Sequence[ModuleRecord]) -> str:
    errors = [record.error for record in records if record.error is not None]
    return f"loss {sum(errors) / len(errors):.3g}" if errors else ""
