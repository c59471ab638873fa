"""Every error that mvquant raises on purpose.

```
MvquantError                    exit code 1: the work failed
├── UnsupportedModelError       a family, layer type or shape that cannot be handled
├── CheckpointError             a model folder or file that cannot be read or written
├── CalibrationError            text that cannot be used, statistics that do not fit the model
├── PlanError                   a plan that contradicts itself or the model
├── EvaluationError             a task or result file that cannot be used
│   └── MissingDataError        a public data set that is neither here nor to be had
├── BackendError                a third-party quantizer that is missing, or failed
└── UsageError                  exit code 2: what was asked for is wrong
    ├── ConfigError             a recipe (or flags) with mistakes, all of them at once
    └── UnknownNameError        a name that is not in a table; suggests the nearest
```

A message names what was wrong, where, and the way out.
"""

import difflib
from collections.abc import Iterable


class MvquantError(Exception):
    """The root of the tree; `exit_code` is what the command line returns."""

    exit_code: int = 1


class UnsupportedModelError(MvquantError):
    """A model whose family, layers or shapes mvquant cannot handle."""


class CheckpointError(MvquantError):
    """A model folder or file that cannot be read or written."""


class CalibrationError(MvquantError):
    """Calibration text that cannot be used, or statistics that do not fit the model."""


class PlanError(MvquantError):
    """A plan that contradicts itself or the model."""


class EvaluationError(MvquantError):
    """A task or result file that cannot be used."""


class MissingDataError(EvaluationError):
    """Data of a task that is neither in a local folder nor to be had from where it is kept.

    >>> str(MissingDataError("gsm8k: the Hub cannot be reached", "hf download openai/gsm8k"))
    'gsm8k: the Hub cannot be reached; the way to it: hf download openai/gsm8k'
    """

    def __init__(self, why: str, way_out: str) -> None:
        self.why, self.way_out = why, way_out
        super().__init__(f"{why}; the way to it: {way_out}")


class BackendError(MvquantError):
    """A third-party quantizer that is not installed, or failed; the message says how to install it, or why."""


class UsageError(MvquantError):
    """What was asked for is wrong: nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    r"""All mistakes of one recipe or one set of flags.

    >>> str(ConfigError("recipe.yaml", ["bits: 5 is not one of 2, 3, 4, 8"]))
    'recipe.yaml:\n  - bits: 5 is not one of 2, 3, 4, 8'
    """

    def __init__(self, where: str, mistakes: Iterable[str]) -> None:
        self.where = where
        self.mistakes = list(mistakes)
        super().__init__("\n  - ".join([f"{where}:", *self.mistakes]))


class UnknownNameError(UsageError):
    """A name that is not in a table.

    >>> str(UnknownNameError("scheme", "w4a15", ["w4a16", "w8a16"]))
    "unknown scheme 'w4a15': did you mean 'w4a16'? (known: w4a16, w8a16)"
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"unknown {kind} {name!r}: {nearest_name(name, self.known)}(known: {', '.join(self.known)})")


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return `"did you mean 'x'? "`, or nothing where no known name is close.

    >>> nearest_name("symetric", ["symmetric", "bits"])
    "did you mean 'symmetric'? "
    >>> nearest_name("colour", ["bits"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}? " if close else ""


def placed(loc: tuple[int | str, ...], message: str) -> str:
    """Say where in a file a mistake is that pydantic found, and which.

    >>> placed(("layers", 0, "bits"), "Value error, too few")
    'layers.0.bits: too few'
    """
    place = ".".join(str(part) for part in loc)
    said = message.removeprefix("Value error, ")
    return f"{place}: {said}" if place else said
