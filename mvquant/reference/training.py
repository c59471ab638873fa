"""One worker's training state: model, optimizers, rows, and how far it has come."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mvquant.reference.items import ITEMS_PER_TASK
from mvquant.reference.optimizer import build_optimizers, set_rates
from mvquant.reference.rows import Rows
from mvquant.reference.schedule import SCHEDULE, Schedule
from mvquant.reference.tokenizer import CONTEXT, build_tokenizer

MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, and how often to report."""

    seed: int = 0
    workers: int = 2
    schedule: Schedule = SCHEDULE
    tokenizer_documents: int = 200
    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    compiled: bool = True
    report_every: int = 200
    validation_items: int = 64
    card_items: int = ITEMS_PER_TASK


def build_model(tokenizer: PreTrainedTokenizerFast, sizes: dict[str, Any]) -> LlamaForCausalLM:
    """Return a fresh Llama; `rope_theta` 500 with context 512 has the geometry of Llama 2."""
    # At this size plain matrix products train faster on a CPU than fused attention.
    special = {
        f"{role}_token_id": tokenizer.convert_tokens_to_ids(str(getattr(tokenizer, f"{role}_token")))
        for role in ("bos", "eos", "pad")
    }
    options: dict[str, Any] = {"attn_implementation": "eager", **special, **sizes}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        **options,
    )
    return LlamaForCausalLM(config)


class Training:
    """Trains step by step; workers see different rows and share their gradients.

    Args:
        settings: what to train; the model starts from its seed alone.
        rank: which worker this is.
    """

    def __init__(self, settings: Settings, rank: int = 0) -> None:
        self.settings, self.rank = settings, rank
        torch.manual_seed(settings.seed)
        self.tokenizer = build_tokenizer(settings.seed, settings.tokenizer_documents)
        self.model = build_model(self.tokenizer, settings.model)
        self._body = self.model.model
        if settings.compiled:
            self._body = torch.compile(self.model.model, dynamic=False)
        self._optimizers = build_optimizers(self.model)
        self._rows = Rows(self.tokenizer, f"{settings.seed}:rows:{rank}")
        # Every worker draws the same length for a step, so that none waits for another.
        self._lengths = Rows(self.tokenizer, f"{settings.seed}:lengths").rng
        self.seen = self.steps = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether the schedule is at its end."""
        return self.seen >= self.settings.schedule.tokens

    def step(self) -> float:
        """Do one optimizer step and return this worker's loss."""
        started = time.perf_counter()
        settings = self.settings
        phase = settings.schedule.phase_at(self.seen)
        length = self._lengths.choices(list(phase.lengths), list(phase.lengths.values()))[0]
        rows = phase.batch_tokens // settings.workers // length
        ids, weights = self._rows.batch(phase.mixture, rows, length + 1)
        loss = self._loss(ids, weights)
        loss.backward()
        self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        set_rates(self._optimizers, phase.rates, settings.schedule.rate_at(self.seen))
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.seen += rows * length * settings.workers
        self.steps += 1
        self.seconds += time.perf_counter() - started
        return loss.item()

    def _loss(self, ids: Tensor, weights: Tensor) -> Tensor:
        # Logits are the dearest tensor here: only those that the loss weighs are computed.
        kept = weights[:, 1:] > 0
        with torch.autocast("cpu", torch.bfloat16):
            states = self._body(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = self.model.lm_head(states[kept])
        losses = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][kept], reduction="none")
        return (losses * weights[:, 1:][kept]).sum() / weights[:, 1:].sum()

    def _share_gradients(self) -> None:
        if self.settings.workers == 1:
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.settings.workers
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self, folder: Path) -> None:
        """Write what `load` needs to go on as if nothing had happened."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "rows": self._rows.rng.getstate(),
            "lengths": self._lengths.getstate(),
            "progress": (self.seen, self.steps, self.seconds),
        }
        partial = folder / f"worker-{self.rank}.partial"
        torch.save(state, partial)
        partial.rename(folder / f"worker-{self.rank}.pt")

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, if it wrote anything."""
        path = folder / f"worker-{self.rank}.pt"
        if not path.exists():
            return
        # The folder is this program's own; a Python random state is not a tensor.
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._rows.rng.setstate(state["rows"])
        self._lengths.setstate(state["lengths"])
        self.seen, self.steps, self.seconds = state["progress"]
