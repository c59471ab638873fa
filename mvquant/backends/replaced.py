"""Other attributes for a package's modules and classes, for a while."""

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def replaced(owner: object, **attributes: object) -> Generator[None]:
    """Give a module or class of a package other attributes for a while.

    Raises:
        AttributeError: it has no such attribute: the package is another version than the adapter was written for.

    >>> import types
    >>> owner = types.SimpleNamespace(step=1)
    >>> with replaced(owner, step=2):
    ...     owner.step
    2
    >>> owner.step
    1
    """
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
