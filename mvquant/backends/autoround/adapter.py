"""What AutoRound can do."""

from collections.abc import Iterator

from mvquant.arch import ModelView
from mvquant.arch.families import FAMILIES
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.programs import PROGRAMS
from mvquant.plan import Plan


def _mistakes(plan: Plan, _view: ModelView) -> Iterator[str]:
    for module in plan.modules:
        if module.kind == "experts":
            yield f"{module.name}: experts that are one parameter; use awq or gptq of backend llmcompressor"
            return
    for module in plan.modules:
        if module.rows % 32:
            yield f"{module.name} has {module.rows} rows, and the package packs 32 at a time; ignore it, or use another"


FAMILIES_TRIED = frozenset(FAMILIES) - {"mixtral", "qwen3_moe"}
"""The package has no list of its own: it takes any causal model. All dense ones of ours were tried."""

AUTO_ROUND = FolderBackend(
    name="auto-round",
    families=FAMILIES_TRIED,
    command=PROGRAMS["auto-round"].command,
    mistakes=_mistakes,
    devices=frozenset({"cpu", "cuda"}),
)
