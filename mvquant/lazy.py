"""Modules that are loaded when first used, where loading them at once is slow or comes too early."""

import importlib
from typing import Any


class LazyModule:
    """Stands for a module that is imported when one of its attributes is first asked for.

    It is not put into `sys.modules`, as `importlib.util.LazyLoader` would do: torch looks at every module
    there while it is being imported, which would load them then, in the middle of it.

    >>> LazyModule("math").floor(2.5)
    2
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401 - whatever the module holds
        """Import the module, and return what is asked for."""
        return getattr(importlib.import_module(self._name), attribute)
