"""Who computes a calibrated method, and whether that can be done here.

A new layer backend needs a line in `LAYER_BACKENDS`; packages that take whole folders are in
`mvquant.backends.folder.run`.
"""

import importlib
from pathlib import Path

from mvquant.arch import ModelView
from mvquant.backends import registry
from mvquant.backends.folder.run import FOLDER_BACKENDS, require_family
from mvquant.backends.layer import LayerBackend
from mvquant.errors import UsageError
from mvquant.layerwise import ALONE, SharedWork, require_no_earlier
from mvquant.method_settings import BackendName, MethodName, MethodSettings

LAYER_BACKENDS: dict[tuple[MethodName, BackendName], str] = {
    ("rtn", "mvquant"): "mvquant.backends.rtn:RoundToNearest",
    ("gptq", "llmcompressor"): "mvquant.backends.llmcompressor:GptqBackend",
    ("awq", "llmcompressor"): "mvquant.backends.llmcompressor:AwqBackend",
    ("smoothquant", "llmcompressor"): "mvquant.backends.llmcompressor:SmoothQuantBackend",
}
"""Of methods that work layer by layer, what makes a `LayerBackend` of their settings; imported when it is used."""


def require_method(
    method: MethodSettings, view: ModelView, work: Path, *, resume: bool = False, processes: SharedWork = ALONE
) -> None:
    """Refuse, before the model is run for statistics, what no plan would change.

    Args:
        method: with its settings.
        view: structure of the model.
        work: folder for work in progress.
        resume: whether an earlier run's work is to be taken up.
        processes: those that are to share the calibration text.

    Raises:
        BackendError: a package is missing.
        UnsupportedModelError: a family that the method or the package does not know.
        UsageError: settings or processes that it cannot use, or an earlier run's work.
    """
    registry.require(method.backend)
    if works_by_layers(method):
        layer_backend(method).require_fit(view)
    else:
        require_family(FOLDER_BACKENDS[method.backend], view)
        require_one_process(method, processes)
    if not resume and processes.rank == 0:
        require_no_earlier(work)


def works_by_layers(method: MethodSettings) -> bool:
    """Whether a method runs here, a decoder layer at a time; the others take a whole model folder."""
    return (method.name, method.backend) in LAYER_BACKENDS


def require_one_process(method: MethodSettings, processes: SharedWork) -> None:
    """Refuse to share text with a package that takes a whole model.

    Raises:
        UsageError: there are more processes.
    """
    if processes.size > 1:
        raise UsageError(f"{method.backend} works in one process: start mvquant without torchrun")


def layer_backend(method: MethodSettings) -> LayerBackend:
    """Return what runs a method layer by layer.

    Raises:
        UsageError: settings that it cannot use.
    """
    module, _, name = LAYER_BACKENDS[method.name, method.backend].partition(":")
    made = getattr(importlib.import_module(module), name)
    return made(method)


def package_versions(backend: BackendName) -> dict[str, str]:
    """Return the versions of a backend's packages, for logs and fingerprints.

    Raises:
        BackendError: a package is missing.
    """
    return registry.named(backend, registry.require(backend))
