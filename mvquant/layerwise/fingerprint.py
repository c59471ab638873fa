"""What the work of an interrupted run was made of: only the very same goes on."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Fingerprint(BaseModel):
    """What decides every integer of a quantization.

    Attributes:
        model: hash of the model's folder.
        plan: hash of the plan.
        calibration: hash of the token ids.
        settings: of the method, its backend, and what else was asked for.
        versions: of the packages that compute.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    plan: str
    calibration: str
    settings: dict[str, Any]
    versions: dict[str, str]

    def differences(self, other: "Fingerprint") -> list[str]:
        """Name what differs in `other`, which is what is there now.

        >>> made = Fingerprint(model="a", plan="p", calibration="c", settings={"damping": 0.01}, versions={})
        >>> made.differences(made.model_copy(update={"plan": "q", "settings": {"damping": 0.1}}))
        ['the plan', 'damping (0.01, now 0.1)']
        """
        words = {"model": "the model", "plan": "the plan", "calibration": "the calibration text"}
        found = [word for name, word in words.items() if getattr(self, name) != getattr(other, name)]
        for ours, theirs in ((self.settings, other.settings), (self.versions, other.versions)):
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            found += [f"{name} ({ours.get(name)}, now {theirs.get(name)})" for name in names]
        return found
