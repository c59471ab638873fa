"""Where the massive values of a model sit: a value made of its statistics, saved as JSON.

Pairs are numbered fastest first; a slow pair has a wavelength of at least the training context. V, models
without RoPE and dims beyond the rotary ones have no pairs.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from mvquant.arch import AttentionView, ModelView
from mvquant.errors import CalibrationError
from mvquant.heads import HeadRows, Role, pair_dims
from mvquant.massive import HeadMoments, default_ratio
from mvquant.plan import CalibrationRecord
from mvquant.rope import training_context, wavelengths
from mvquant.stats import CalibrationStats, LayerStats, require_fit

ANALYSIS_VERSION = 1
"""Raised whenever a figure changes its meaning."""

Stage = Literal["before RoPE", "after RoPE"]

_STATES: dict[str, tuple[Role, Stage]] = {
    "q_pre": ("q", "before RoPE"),
    "k_pre": ("k", "before RoPE"),
    "q": ("q", "after RoPE"),
    "k": ("k", "after RoPE"),
    "v": ("v", "after RoPE"),
}


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MassiveValue(_Data):
    """One (head, dim) whose norm stands out in its head."""

    head: int
    dim: int
    ratio: float
    """Its norm over the mean norm of the head's dims."""
    pair: int | None
    wavelength: float | None
    """Tokens per turn of its pair."""
    slow: bool | None
    """Whether that is at least the training context."""


class RoleAnalysis(_Data):
    """The massive values of Q, K or V in one layer, before or after RoPE."""

    role: Role
    stage: Stage
    heads: int
    head_dim: int
    largest_ratio: float
    """The largest norm over the mean of its head, massive or not."""
    massive: tuple[MassiveValue, ...]
    energy_share: tuple[float, ...]
    """Each pair's share of the energy in all pairs, averaged over heads."""

    @property
    def massive_heads(self) -> int:
        """Heads with at least one massive value."""
        return len({value.head for value in self.massive})


class LayerAnalysis(_Data):
    """One decoder layer."""

    layer: int
    layer_type: str | None
    training_context: int
    wavelengths: tuple[float, ...]
    """Tokens per turn of each pair; empty without RoPE."""
    pair_dims: tuple[tuple[int, int], ...]
    """The two dims of a head that each pair turns."""
    q_pre: RoleAnalysis
    k_pre: RoleAnalysis
    q: RoleAnalysis
    k: RoleAnalysis
    v: RoleAnalysis

    @property
    def slow_pairs(self) -> tuple[int, ...]:
        """Pairs with a wavelength of at least the training context."""
        return tuple(pair for pair, wavelength in enumerate(self.wavelengths) if wavelength >= self.training_context)

    @property
    def slow_dims(self) -> tuple[int, ...]:
        """Dims of a head that belong to slow pairs."""
        return tuple(sorted(dim for pair in self.slow_pairs for dim in self.pair_dims[pair]))

    def role(self, role: Role) -> RoleAnalysis:
        """Return a role as attention sees it, after RoPE."""
        return {"q": self.q, "k": self.k, "v": self.v}[role]


class Analysis(_Data):
    """The massive values of a model, and what they were measured on."""

    schema_version: Literal[1] = ANALYSIS_VERSION
    model: str
    family: str
    ratio: float
    """A value is massive above so many times the mean norm of its head."""
    calibration: CalibrationRecord
    versions: dict[str, str]
    layers: tuple[LayerAnalysis, ...]

    @property
    def training_context(self) -> int:
        """The longest of the layers."""
        return max((layer.training_context for layer in self.layers), default=0)

    @property
    def has_rope(self) -> bool:
        """Whether any layer turns Q and K."""
        return any(layer.wavelengths for layer in self.layers)

    def massive(self, *roles: Role) -> list[MassiveValue]:
        """Return the massive values of these roles in all layers, after RoPE."""
        return [value for layer in self.layers for role in roles for value in layer.role(role).massive]

    def layers_with(self, role: Role) -> list[int]:
        """Return the layers where a role has massive values."""
        return [layer.layer for layer in self.layers if layer.role(role).massive]

    def slow_fraction(self, *roles: Role) -> float | None:
        """Return how many of the massive values of these roles sit in slow pairs; None where there are none."""
        in_pairs = [value for value in self.massive(*roles) if value.slow is not None]
        return sum(value.slow is True for value in in_pairs) / len(in_pairs) if in_pairs else None

    @property
    def slow_pair_fraction(self) -> float | None:
        """How many of all pairs are slow: what `slow_fraction` would be by chance; None without RoPE."""
        pairs = sum(len(layer.wavelengths) for layer in self.layers)
        return sum(len(layer.slow_pairs) for layer in self.layers) / pairs if pairs else None

    def slow_energy(self, role: Role) -> float | None:
        """Return the share of a role's energy that slow pairs hold, as the mean over layers; None without RoPE."""
        shares = [
            sum(layer.role(role).energy_share[pair] for pair in layer.slow_pairs)
            for layer in self.layers
            if layer.role(role).energy_share
        ]
        return sum(shares) / len(shares) if shares else None


def analyze(view: ModelView, stats: CalibrationStats, ratio: float | None = None, model: str = "") -> Analysis:
    """Find the massive values of a model in its statistics.

    Args:
        view: the model's structure.
        stats: what calibration measured on it.
        ratio: above so many times the mean norm of its head a value is massive; the paper's 5, lowered for
            heads of fewer than 128 dims (`default_ratio`), where None.
        model: the name to keep; what the config says by default.

    Raises:
        CalibrationError: statistics of another model.
    """
    require_fit(stats, view)
    if ratio is None:
        ratio = default_ratio(view.attentions[0].q.head_dim)
    return Analysis(
        model=model or str(getattr(view.config, "name_or_path", "")) or view.family,
        family=view.family,
        ratio=ratio,
        calibration=CalibrationRecord(
            source=stats.source, sequences=stats.sequences, length=stats.length, seed=stats.seed, hash=stats.hash
        ),
        versions=_versions(),
        layers=tuple(
            _layer(view, attention, layer, ratio)
            for attention, layer in zip(view.attentions, stats.layers, strict=True)
        ),
    )


def _layer(view: ModelView, attention: AttentionView, stats: LayerStats, ratio: float) -> LayerAnalysis:
    context = training_context(view.config, attention.layer_type)
    turns = wavelengths(view.config, attention.layer_type).tolist() if attention.q.pairs else []
    roles = {
        name: _role(getattr(attention, role), getattr(stats, name), stage, ratio=ratio, turns=turns, context=context)
        for name, (role, stage) in _STATES.items()
    }
    return LayerAnalysis(
        layer=attention.layer,
        layer_type=attention.layer_type,
        training_context=context,
        wavelengths=tuple(turns),
        pair_dims=tuple(pair_dims(pair, attention.q.rotary_dim, attention.q.layout) for pair in range(len(turns))),
        **roles,
    )


def _role(
    rows: HeadRows, moments: HeadMoments, stage: Stage, *, ratio: float, turns: list[float], context: int
) -> RoleAnalysis:
    ratios = moments.ratios()
    pair_of = _pairs_by_dim(rows)
    found: list[MassiveValue] = []
    for head, dim in moments.massive(ratio).nonzero().tolist():
        pair = pair_of.get(dim)
        turn = None if pair is None else turns[pair]
        slow = None if turn is None else turn >= context
        found.append(
            MassiveValue(head=head, dim=dim, ratio=float(ratios[head, dim]), pair=pair, wavelength=turn, slow=slow)
        )
    return RoleAnalysis(
        role=rows.role,
        stage=stage,
        heads=rows.heads,
        head_dim=rows.head_dim,
        largest_ratio=float(ratios.max()),
        massive=tuple(found),
        energy_share=tuple(_shares(moments.pair_energy(rows.rotary_dim, rows.layout)).mean(dim=0).tolist()),
    )


def _pairs_by_dim(rows: HeadRows) -> dict[int, int]:
    dims_of = (pair_dims(pair, rows.rotary_dim, rows.layout) for pair in range(rows.pairs))
    return {dim: pair for pair, dims in enumerate(dims_of) for dim in dims}


def _shares(energy: Float[Tensor, "head pair"]) -> Float[Tensor, "head pair"]:
    """Divide by the head's whole; heads without any energy stay at zero."""
    whole = energy.sum(dim=-1, keepdim=True)
    return torch.where(whole > 0, energy / whole, torch.zeros_like(energy))


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in ("mvquant", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found


def save_analysis(analysis: Analysis, path: Path) -> None:
    """Write an analysis as JSON."""
    path.write_text(analysis.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_analysis(path: Path) -> Analysis:
    """Read what `save_analysis` wrote.

    Raises:
        CalibrationError: no such file, or not an analysis of this version.
    """
    try:
        return Analysis.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read: {error}"
    except ValidationError as error:
        message = f"{path} is no analysis of version {ANALYSIS_VERSION} ({error.error_count()} mistakes)"
    raise CalibrationError(f"{message}; run `mvquant analyze` again")
