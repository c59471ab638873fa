"""What GPTQModel can do."""

from collections.abc import Iterator

from mvquant.arch import ModelView
from mvquant.backends.folder.awq import awq_mistakes
from mvquant.backends.folder.backend import FolderBackend
from mvquant.backends.folder.programs import PROGRAMS
from mvquant.method_settings import Awq, Gptq
from mvquant.plan import Plan

GPTQ_BLOCK = 128


def _mistakes(plan: Plan, view: ModelView) -> Iterator[str]:
    method = plan.recipe.method
    if isinstance(method, Gptq) and method.block_size != GPTQ_BLOCK:
        yield f"block_size {method.block_size}: its GPTQ works in blocks of {GPTQ_BLOCK}; leave it out"
    if isinstance(method, Awq):
        yield from _awq_mistakes(plan, view, method)
    for module in plan.modules:
        if module.kind == "experts":
            yield f"{module.name}: experts that are one parameter; use backend llmcompressor"
            return


def _awq_mistakes(plan: Plan, view: ModelView, method: Awq) -> Iterator[str]:
    yield from awq_mistakes(plan, method, "its AWQ", "gptq or backend llmcompressor")
    if plan.dtype == "float32":
        yield "its AWQ has no kernel for float32 models; store the model as bfloat16, or use backend llmcompressor"
    if view.family not in AWQ_FAMILIES:
        known = ", ".join(sorted(AWQ_FAMILIES))
        yield f"its AWQ was not found to work with {view.family} models (with {known}); use gptq or llmcompressor"


GPTQ_FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma2", "cohere", "olmo2", "gpt_neox", "opt", "gpt2"}
)
"""Not among them: phi3, whose fused gate_up_proj it leaves alone, and gemma3_text, which it fails to load."""

AWQ_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Not among them: gemma3_text, whose norms it takes for Llama's, opt and cohere, which came out worse than rounded, and
others whose reload was not compared with ours."""

GPTQMODEL = FolderBackend(
    name="gptqmodel",
    families=GPTQ_FAMILIES,
    command=PROGRAMS["gptqmodel"].command,
    mistakes=_mistakes,
    environment=PROGRAMS["gptqmodel"].environment,
    one_scheme=frozenset({"awq"}),
    devices=frozenset({"cpu", "cuda"}),
    saved_copies=2,  # one of them is what it offloads layer by layer
)
