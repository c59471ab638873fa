"""Modules that are loaded when first used, where loading them at once is slow or comes too early."""

import importlib
from collections.abc import Callable, Mapping
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


def lazy_names(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` (PEP 562), which imports what it offers when it is asked for.

    Args:
        package: its name.
        homes: by module of the package, the names that are found there; none may be a module's name, as importing that
            module would put it in the name's place.

    >>> lazy_names("json", {"decoder": ("JSONDecoder",)})("JSONDecoder").__module__
    'json.decoder'
    """
    home_of = {name: f"{package}.{module}" for module, names in homes.items() for name in names}

    def find(name: str) -> Any:  # noqa: ANN401 - whatever is offered
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name]), name)

    return find
