"""What AutoAWQ can do."""

from collections.abc import Iterator

from mvquant.arch import ModelView
from mvquant.backends.folder.awq import awq_mistakes
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.programs import PROGRAMS
from mvquant.method_settings import Awq
from mvquant.plan import Plan


def _mistakes(plan: Plan, view: ModelView) -> Iterator[str]:
    method = plan.recipe.method
    if isinstance(method, Awq):
        yield from awq_mistakes(plan, method, "it", "backend llmcompressor")
    planned = {module.name: module for module in plan.modules if module.scheme.is_quantized}
    if left_out := [weight.name for weight in view.weights if weight.name not in planned]:
        yield f"{left_out[0]} is to stay as floats, and it cannot leave modules out; use backend llmcompressor"


FAMILIES_TRIED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "cohere"})
"""Not among them: opt, which fails under transformers 5, and phi3 and gpt_neox, which came out worse than rounded."""

AUTOAWQ = FolderBackend(
    name="autoawq",
    families=FAMILIES_TRIED,
    command=PROGRAMS["autoawq"].command,
    mistakes=_mistakes,
    one_scheme=frozenset({"awq"}),
)
