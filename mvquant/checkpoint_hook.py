"""`import mvquant` teaches transformers to load mvquant checkpoints, without importing transformers itself.

transformers has no entry points, so someone has to register; importing it (and torch) just for that
would cost every `mvquant recipes ls` seconds. The registration waits until transformers is imported.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

WAITS_FOR = "transformers.quantizers.auto"
REGISTERS = "mvquant.checkpoint.hf_quantizer"


def register_on_import() -> None:
    """Register the quantizer now if transformers is loaded, else as soon as it is; repeating does nothing."""
    if WAITS_FOR in sys.modules:
        importlib.import_module(REGISTERS)
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Steps aside at once, and has the registration follow the import it waited for."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if fullname != WAITS_FOR:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


class _RegisterAfter(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(REGISTERS)
