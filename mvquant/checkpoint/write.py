"""Streaming a checkpoint through a plan: read a tensor, quantize it, write it, forget it."""

import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvquant.arch import ModelView, Source, checkpoint_sources, tied_on_disk
from mvquant.checkpoint.folder import CONFIG, INDEX, PICKLED, Checkpoint
from mvquant.checkpoint.native import GUARD, guard_name, quantization_config
from mvquant.checkpoint.shards import ShardWriter
from mvquant.checkpoint.staging import staged_folder
from mvquant.errors import CheckpointError
from mvquant.methods import WeightResults, plan_factors, quantize, require_plan_fit, require_results
from mvquant.plan import ModulePlan, Plan
from mvquant.progress import Progress
from mvquant.readable_json import numbers_in_a_row

DEFAULT_SHARD_BYTES = 1_000_000_000
PLAN_FILE = "plan.json"
NOT_COPIED = ("*.safetensors", *PICKLED, "*.py", "*.gguf", INDEX, CONFIG, PLAN_FILE)


def write_checkpoint(
    source: Checkpoint,
    view: ModelView,
    plan: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    results: WeightResults | None = None,
    more_files: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fold and quantize `source` as `plan` says and write it to `out`, which appears only when it is complete.

    At most one weight of the model, and what is made of it, is in memory. `results` is what a calibrated method made
    of the weights, where the plan names one; all others are rounded here. `more_files` are texts to write beside them.

    Raises:
        PlanError: the plan is for another model, or names a calibrated method without results.
        UnsupportedModelError: the plan speaks of a cache or folds, and the model has no RoPE.
        CheckpointError: a tensor is missing, not finite, or cannot be read; the disk is full.
        UsageError: `out` exists, and `overwrite` was not asked for.
    """
    require_plan_fit(plan, view)
    require_results(plan, view, results)
    sources = checkpoint_sources(view, source.files)
    _check_ties(source, view)
    with staged_folder(out, overwrite=overwrite) as folder, _one_thread():
        writer = ShardWriter(folder, shard_bytes, {"format": "pt"})
        _write_weights(source, view, plan, sources, writer, results, progress)
        _write_config(source, plan, folder)
        plan.save(folder / PLAN_FILE)
        _copy_companions(source.folder, folder)
        for name, text in (more_files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


@contextmanager
def _one_thread() -> Generator[None]:
    """Keep torch to one thread: weights are quantized in blocks that fit into a core's cache, too small to share.

    On a busy machine threads wait for each other after every block, ten times longer than they compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_weights(
    source: Checkpoint,
    view: ModelView,
    plan: Plan,
    sources: Mapping[str, Source],
    writer: ShardWriter,
    results: WeightResults | None,
    progress: Progress | None,
) -> None:
    weights = {weight.name: weight for weight in view.weights}
    planned = {weights[module.name].parameter: module for module in plan.modules if module.scheme.is_quantized}
    folded = plan_factors(plan, view)
    for done, (parameter, made_of) in enumerate(sources.items()):
        if progress:
            progress(parameter, done, len(sources))
        if results is not None and parameter in planned:
            name = planned[parameter].name
            writer.add_all({f"{name}.{part}": tensor for part, tensor in results.state(name).items()})
            continue
        if results is not None and parameter in results.changed:
            writer.add(parameter, results.parameter(parameter))
            continue
        tensors = source.read(made_of.tensors)
        tensor = made_of.assemble([tensors[name] for name in made_of.tensors])
        del tensors
        if parameter in folded:
            tensor = folded[parameter].folded(tensor)
        module = planned.get(parameter)
        if module is None:
            writer.add(parameter, tensor)
        else:
            weight = tensor.T if weights[module.name].transposed else tensor
            writer.add_all({f"{module.name}.{part}": made for part, made in _quantize(module, weight).items()})
    if (guard := guard_name(plan)) is not None:
        writer.add(guard, GUARD)
    writer.close()
    if progress:
        progress("", len(sources), len(sources))


def _quantize(module: ModulePlan, weight: Tensor) -> dict[str, Tensor]:
    # the extremes are NaN or infinite if any weight is, and cost a fortieth of looking at every weight
    if not all(torch.isfinite(extreme) for extreme in weight.aminmax()):
        count = int((~torch.isfinite(weight)).sum())
        raise CheckpointError(f"{module.name}: {count} of {weight.numel()} weights are NaN or infinite: mend the model")
    return quantize(module, weight)


def _check_ties(source: Checkpoint, view: ModelView) -> None:
    for alias, owner in tied_on_disk(view, source.files):
        tensors = source.read({alias, owner})
        if not torch.equal(tensors[alias], tensors[owner]):
            raise CheckpointError(
                f"{source.folder}: config.json ties {alias} to {owner}, but the two differ on disk: "
                "set tie_word_embeddings to false if both are meant"
            )


def _write_config(source: Checkpoint, plan: Plan, folder: Path) -> None:
    config: dict[str, Any] = {**source.raw_config, "quantization_config": quantization_config(plan)}
    (folder / CONFIG).write_text(numbers_in_a_row(json.dumps(config, indent=2)) + "\n", encoding="utf-8")


def _copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation config and the like; never weights or code."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith(".") and not any(map(path.match, NOT_COPIED)):
            shutil.copyfile(path, folder / path.name)
