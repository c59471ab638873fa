"""What an answer depends on: if any of it changes, the answer is stale."""

import platform
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel, ConfigDict

from mvquant.checkpoint.folder_hash import folder_hash

__all__ = ["Fingerprint", "folder_hash", "package_versions"]

PACKAGES = ("mvquant", "torch", "transformers", "tokenizers")


class Fingerprint(BaseModel):
    """What one (variant, task) result was made of.

    Attributes:
        model: hash of the folder that was loaded.
        plan: hash of the plan that it was quantized with in memory.
        data: hash of the items or tokens.
        settings: everything else that was asked for.
        versions: of the packages that computed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    plan: str | None
    data: str
    settings: dict[str, str | int | None]
    versions: dict[str, str]

    def differences(self, other: "Fingerprint") -> list[str]:
        """Name what differs, shortly enough for one line.

        >>> made = Fingerprint(model="a", plan=None, data="d", settings={"limit": 4}, versions={})
        >>> made.differences(made.model_copy(update={"data": "e", "settings": {"limit": 8}}))
        ['data', 'limit (4, now 8)']
        """
        found = [name for name in ("model", "plan", "data") if getattr(self, name) != getattr(other, name)]
        for ours, theirs in ((self.settings, other.settings), (self.versions, other.versions)):
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            found += [f"{name} ({ours.get(name)}, now {theirs.get(name)})" for name in names]
        return found


def package_versions(*more: str) -> dict[str, str]:
    """Versions of python and of what computes answers."""
    return {"python": platform.python_version()} | {name: _version(name) for name in (*PACKAGES, *more)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
