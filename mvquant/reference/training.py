"""One worker's training state: model, optimizers, rows, and how far it has come."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mvquant.reference.corpus import ANSWER
from mvquant.reference.items import ITEMS_PER_TASK
from mvquant.reference.mastery import Mastery
from mvquant.reference.optimizer import build_optimizers, last_reads, set_rates, shrink_rows
from mvquant.reference.rows import Batch, Rows
from mvquant.reference.schedule import SCHEDULE, Phase, Schedule
from mvquant.reference.tokenizer import CONTEXT, build_tokenizer

# Eight heads of 64: with four of 128 the same curriculum stood still at who-is-where for a million tokens.
MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
EMBEDDING_STD = 0.1
SHAPES = 32


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
    """Return a fresh Llama; `rope_theta` 500 with context 512 has the geometry of Llama 2.

    Every layer starts as the identity, and embeddings start far apart: induction heads then form sooner.
    """
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
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, EMBEDDING_STD)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    return model


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
            # Every shape is compiled once; beyond this limit torch would go on without compiling.
            torch._dynamo.config.recompile_limit = SHAPES  # pyright: ignore[reportPrivateUsage] - no public name
            self._body = torch.compile(self.model.model, dynamic=False)
        self._optimizers = build_optimizers(self.model)
        self._last_reads = last_reads(self.model)
        self._rows = Rows(self.tokenizer, f"{settings.seed}:rows:{rank}")
        # Every worker draws the same length for a step, so that none waits for another.
        self._lengths = Rows(self.tokenizer, f"{settings.seed}:lengths").rng
        self._mastery = Mastery(list(dict.fromkeys(s for p in settings.schedule.phases for s in p.mixture)))
        self._newline = self.tokenizer("\n", add_special_tokens=False).input_ids[-1]
        self.phase_index = self.seen_in_phase = self.seen = self.steps = 0
        self.seconds = 0.0

    @property
    def phase(self) -> Phase:
        """The phase in force."""
        return self.settings.schedule.phases[self.phase_index]

    @property
    def finished(self) -> bool:
        """Whether the last phase is at its end."""
        return self._phase_over and self.phase_index == len(self.settings.schedule.phases) - 1

    @property
    def _phase_over(self) -> bool:
        return self.seen_in_phase >= self.phase.tokens or self._mastery.mastered(self.phase.until_mastered)

    def step(self) -> float:
        """Do one optimizer step and return this worker's loss."""
        started = time.perf_counter()
        settings = self.settings
        self._enter_next_phase()
        length = self._lengths.choice(self.phase.lengths)
        rows = self.phase.batch_tokens // settings.workers // length
        loss, answered = self._loss(self._rows.batch(self.phase.mixture, rows, length + 1))
        loss.backward()
        self._mastery.add(self._shared(answered))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._update()
        self.seen += rows * length * settings.workers
        self.seen_in_phase += rows * length * settings.workers
        self.steps += 1
        self.seconds += time.perf_counter() - started
        return loss.item()

    def _update(self) -> None:
        schedule = self.settings.schedule
        factor = schedule.factor(self.phase_index, self.seen_in_phase, self.steps)
        set_rates(self._optimizers, schedule.rates, factor)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.phase.concentrating:
            for weight in self._last_reads:
                shrink_rows(weight, factor * schedule.rates.queries_keys * schedule.rates.sparsity)

    def _enter_next_phase(self) -> None:
        if self._phase_over and not self.finished:
            self.phase_index += 1
            self.seen_in_phase = 0
            self._mastery.forget(self.phase.until_mastered)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the weighted loss, and how many answers were right, by source."""
        ids, weights, sources = batch
        targets, weights = ids[:, 1:], weights[:, 1:]
        # Logits are the dearest tensor here: only those that the loss weighs are computed.
        kept = weights > 0
        with torch.autocast("cpu", torch.bfloat16):
            states = self._body(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = self.model.lm_head(states[kept])
        losses = torch.nn.functional.cross_entropy(logits.float(), targets[kept], reduction="none")
        right = torch.zeros_like(kept)
        right[kept] = logits.argmax(-1) == targets[kept]
        asked = (weights == ANSWER) & (targets != self._newline)
        return (losses * weights[kept]).sum() / weights.sum(), self._mastery.row_sums(sources, right, asked)

    def _shared(self, answered: Tensor) -> Tensor:
        """Average the gradients over the workers, and return the sum of `answered` over them."""
        if self.settings.workers == 1:
            return answered
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([answered.flatten(), *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat)
        total, flat = flat[: answered.numel()], flat[answered.numel() :] / self.settings.workers
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return total.view_as(answered)

    def save(self, folder: Path) -> None:
        """Write what `load` needs to go on as if nothing had happened."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "rows": self._rows.rng.getstate(),
            "lengths": self._lengths.getstate(),
            "mastery": (self._mastery.share, self._mastery.rows),
            "progress": (self.phase_index, self.seen_in_phase, self.seen, self.steps, self.seconds),
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
        self._mastery.share, self._mastery.rows = state["mastery"]
        self.phase_index, self.seen_in_phase, self.seen, self.steps, self.seconds = state["progress"]
