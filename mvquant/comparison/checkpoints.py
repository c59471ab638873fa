"""Variants whose weights a calibrated method chooses: quantized once, into a folder that a later run takes up.

checkpoints/<variant>-<hash>    a checkpoint of mvquant; it appears only when it is complete. The hash is of the plan,
                                the model and the versions of what quantizes it: if any of them changes, it is made anew
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from mvquant.backends import registry
from mvquant.checkpoint.folder import CONFIG
from mvquant.comparison.store import file_name
from mvquant.plan import Plan

CHECKPOINTS = "checkpoints"

_DIGITS = 16
"""Of the hash."""

Quantize = Callable[[Plan, Path], None]
"""Writes the baseline, quantized as a plan says, to a folder that is not there yet."""


def needs_folder(plan: Plan) -> bool:
    """Whether a plan takes more than the weights themselves, so that it is not obeyed in memory."""
    return plan.recipe.calibrates_weights


def quantizer_versions(plan: Plan) -> dict[str, str]:
    """Versions of the packages that choose a plan's integers; none where it is obeyed in memory."""
    backend = plan.recipe.method.backend
    return registry.named(backend, registry.versions(backend)) if needs_folder(plan) else {}


def quantized_folder(name: str, plan: Plan, model_hash: str, quantize: Quantize, comparison: Path) -> Path:
    """Return the folder of a variant's checkpoint; quantize first unless the very same is there.

    Args:
        name: of the variant.
        plan: what to do.
        model_hash: of the baseline's folder.
        quantize: does it.
        comparison: the folder of the comparison.

    Raises:
        MvquantError: it cannot be quantized, or not be written.
    """
    parent, first = comparison / CHECKPOINTS, file_name(name)
    folder = parent / f"{first}-{_key(plan, model_hash)}"
    if not (folder / CONFIG).is_file():
        parent.mkdir(exist_ok=True)
        _remove_others(parent, first, folder)
        quantize(plan, folder)
    return folder


def _key(plan: Plan, model_hash: str) -> str:
    made_of = [model_hash, plan.hash, quantizer_versions(plan)]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def _remove_others(parent: Path, first: str, wanted: Path) -> None:
    """Remove what the same variant was before, with another plan; these folders are ours."""
    pattern = re.compile(rf"{re.escape(first)}-[0-9a-f]{{{_DIGITS}}}(\.work)?")
    for path in parent.iterdir():
        if pattern.fullmatch(path.name) and not path.name.startswith(wanted.name):
            shutil.rmtree(path)
