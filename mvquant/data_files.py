"""Reading files that people write or edit: YAML mappings and saved plans. Mistakes are named all at once."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mvquant.errors import ConfigError, PlanError, placed

Saved = TypeVar("Saved", bound=BaseModel)


def yaml_mapping(text: str, where: str, expected: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Args:
        text: the document.
        where: what to call it in errors, usually its path.
        expected: what it should have been.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(where, [f"is not YAML: {error}"]) from None
    if not isinstance(document, dict):
        raise ConfigError(where, [f"is not a mapping; {expected}"])
    return document


def read_text(path: Path) -> str:
    """Read a file that people write.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {_reason(error)}"]) from None


def load_saved(kind: type[Saved], path: Path, what: str, way_out: str = "") -> Saved:
    """Read a plan that was saved as JSON, perhaps edited by hand since.

    Args:
        kind: of plan.
        path: of the file.
        what: to call it in errors.
        way_out: how to get one, for the error where there is none.

    Raises:
        PlanError: the file cannot be read.
        ConfigError: with every mistake at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot read the {what} ({_reason(error)}){way_out}") from None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(str(path), (placed(detail["loc"], detail["msg"]) for detail in error.errors())) from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
