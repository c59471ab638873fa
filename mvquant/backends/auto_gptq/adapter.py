"""auto-gptq as a folder backend: what it can do, and the folder that its environment gets."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mvquant.arch import ModelView
from mvquant.backends.auto_gptq.legacy_config import legacy_config
from mvquant.backends.environments import environment_folder, environment_python
from mvquant.backends.folder.backend import FolderBackend
from mvquant.errors import CheckpointError
from mvquant.plan import Plan

WORKER = Path(__file__).parent / "worker.py"
CONFIG = "config.json"
PROBE = "probe.safetensors"
PROBE_LENGTH = 512
FAMILIES = frozenset({"llama", "mistral", "qwen2", "gpt_neox", "opt"})
WORD = 32
"""Rows and columns have to fill whole words of 32 integers: it packs no others."""


def command(*jobs: Path) -> list[str]:
    """Return the command of the child process: its own Python, which sees nothing of this environment."""
    return [str(environment_python(environment_folder("auto-gptq"))), "-I", str(WORKER), *map(str, jobs)]


def mistakes(plan: Plan, view: ModelView) -> Iterator[str]:
    """What of a plan auto-gptq cannot do."""
    for module in plan.modules:
        if module.rows % WORD or module.columns % WORD:
            yield (
                f"{module.name}: auto-gptq packs rows and columns by {WORD}, and it has {module.rows} rows of "
                f"{module.columns} columns: use backend llmcompressor"
            )
    if len(set(getattr(view.config, "layer_types", None) or ())) > 1:
        yield "auto-gptq gives all layers one attention mask, and this model has two kinds: use backend llmcompressor"


def prepare(source: Path) -> None:
    """Make the source folder one that transformers 4.53 understands, with a proof: logits of one sequence.

    Raises:
        CheckpointError: logits that are not finite.
    """
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    save_file(_probe(source, config.vocab_size, config.max_position_embeddings), source / PROBE)
    (source / CONFIG).write_text(json.dumps(legacy_config(config), indent=1), encoding="utf-8")


def _probe(source: Path, vocabulary: int, positions: int) -> dict[str, torch.Tensor]:
    """Tokens, and the logits that the model gives here; long, so that every RoPE pair turns."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, min(PROBE_LENGTH, positions)), generator=generator)
    with torch.inference_mode():
        logits = model(tokens).logits.clone()
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError("the model, before it is quantized, gives logits that are NaN or infinite")
    return {"tokens": tokens, "logits": logits}


AUTO_GPTQ = FolderBackend(
    name="auto-gptq",
    families=FAMILIES,
    command=command,
    mistakes=mistakes,
    prepare=prepare,
    one_scheme=frozenset({"gptq"}),
    weight_bytes=4,
)
