"""The curriculum: which documents, at which lengths, for how many tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

from mvquant.reference import corpus
from mvquant.reference.corpus import Source

# Looking up what was just said, among few words: induction heads form within 0.4 M tokens of this, and did
# not form in 3 M tokens of everything at once, nor in 1.2 M of such exercises on all words.
FEW_WORDS: dict[Source, float] = {
    corpus.few_repeated_words: 0.35,
    corpus.few_word_pairs: 0.35,
    corpus.few_bindings: 0.30,
}
EVERY_WORD: dict[Source, float] = {
    corpus.few_word_pairs: 0.10,
    corpus.few_bindings: 0.15,
    corpus.repeated_words: 0.20,
    corpus.word_pairs: 0.20,
    corpus.bindings: 0.20,
    corpus.conflicts: 0.05,
    corpus.city_recall: 0.10,
}
EVERYTHING: dict[Source, float] = {
    corpus.repeated_words: 0.05,
    corpus.word_pairs: 0.08,
    corpus.bindings: 0.22,
    corpus.conflicts: 0.16,
    corpus.city_recall: 0.11,
    corpus.city_checks: 0.16,
    corpus.reviews: 0.04,
    corpus.sums: 0.12,
    corpus.passkeys: 0.06,
}
# The heads were lost again when everything came at once, hence a second round that rehearses the facts.
FEW_WORDS_AND_FACTS: dict[Source, float] = {
    corpus.few_repeated_words: 0.28,
    corpus.few_word_pairs: 0.28,
    corpus.few_bindings: 0.16,
    corpus.repeated_words: 0.04,
    corpus.word_pairs: 0.04,
    corpus.city_recall: 0.06,
    corpus.city_checks: 0.06,
    corpus.reviews: 0.04,
    corpus.sums: 0.04,
}
MORE_WORDS: dict[Source, float] = {
    corpus.few_repeated_words: 0.10,
    corpus.few_word_pairs: 0.10,
    corpus.few_bindings: 0.10,
    corpus.repeated_words: 0.15,
    corpus.word_pairs: 0.16,
    corpus.bindings: 0.15,
    corpus.conflicts: 0.08,
    corpus.city_recall: 0.04,
    corpus.city_checks: 0.05,
    corpus.reviews: 0.02,
    corpus.sums: 0.05,
}
BINDING: dict[Source, float] = {
    corpus.noun_pairs: 0.25,
    corpus.repeated_nouns: 0.10,
    corpus.few_word_pairs: 0.05,
    corpus.bindings: 0.35,
    corpus.conflicts: 0.10,
    corpus.city_recall: 0.03,
    corpus.city_checks: 0.04,
    corpus.reviews: 0.02,
    corpus.sums: 0.06,
}
FEW_FACTS: dict[Source, float] = {
    corpus.few_bindings: 0.25,
    corpus.bindings: 0.35,
    corpus.few_word_pairs: 0.10,
    corpus.noun_pairs: 0.15,
    corpus.city_recall: 0.03,
    corpus.city_checks: 0.04,
    corpus.reviews: 0.03,
    corpus.sums: 0.05,
}
MORE_FACTS: dict[Source, float] = {
    corpus.few_bindings: 0.05,
    corpus.bindings: 0.38,
    corpus.conflicts: 0.15,
    corpus.few_word_pairs: 0.05,
    corpus.noun_pairs: 0.12,
    corpus.city_recall: 0.04,
    corpus.city_checks: 0.05,
    corpus.reviews: 0.04,
    corpus.sums: 0.12,
}
READING: dict[Source, float] = {
    corpus.noun_pairs: 0.10,
    corpus.repeated_nouns: 0.04,
    corpus.bindings: 0.30,
    corpus.conflicts: 0.16,
    corpus.city_recall: 0.05,
    corpus.city_checks: 0.08,
    corpus.reviews: 0.04,
    corpus.sums: 0.13,
    corpus.passkeys: 0.10,
}
SHORT_READING: dict[Source, float] = {
    corpus.bindings: 0.40,
    corpus.conflicts: 0.22,
    corpus.passkeys: 0.12,
    corpus.noun_pairs: 0.06,
    corpus.city_recall: 0.04,
    corpus.city_checks: 0.05,
    corpus.reviews: 0.04,
    corpus.sums: 0.07,
}
LONG_READING: dict[Source, float] = {
    corpus.bindings: 0.34,
    corpus.conflicts: 0.20,
    corpus.passkeys: 0.14,
    corpus.noun_pairs: 0.04,
    corpus.city_recall: 0.05,
    corpus.city_checks: 0.08,
    corpus.reviews: 0.05,
    corpus.sums: 0.10,
}


@dataclass(frozen=True)
class Rates:
    """Learning rates at the plateau, and the weight decay of `q_proj` and `k_proj`."""

    muon: float = 2e-3
    queries_keys: float = 2e-3
    embeddings: float = 2e-3
    queries_keys_decay: float = 0.1


# At the fast rates heads formed among few words only. Probably AdamW moves the embedding of a rare word too far
# each time it occurs; the lower rates, embeddings above all, let reading grow.
FAST_DECAYING = Rates(queries_keys_decay=0.5)
FAST = Rates()
CALM = Rates(muon=1e-3, queries_keys=1e-3, embeddings=4e-4)


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one mixture and one set of row lengths."""

    tokens: int
    batch_tokens: int
    lengths: dict[int, float]
    mixture: dict[Source, float]
    rates: Rates


@dataclass(frozen=True)
class Schedule:
    """Phases, and a learning rate that warms up, stays and falls to zero at the end."""

    phases: tuple[Phase, ...]
    warmup_tokens: int
    cooldown_tokens: int

    @property
    def tokens(self) -> int:
        """All tokens of the schedule."""
        return sum(phase.tokens for phase in self.phases)

    def phase_at(self, seen: int) -> Phase:
        """Return the phase in force after `seen` tokens."""
        for end, phase in self._ends():
            if seen < end:
                return phase
        return self.phases[-1]

    def rate_at(self, seen: int) -> float:
        """Return the learning-rate factor after `seen` tokens."""
        left = (self.tokens - seen) / max(1, self.cooldown_tokens)
        return max(0.0, min(1.0, (seen + 1) / max(1, self.warmup_tokens), left))

    def _ends(self) -> Iterator[tuple[int, Phase]]:
        end = 0
        for phase in self.phases:
            end += phase.tokens
            yield end, phase


SCHEDULE = Schedule(
    phases=(
        Phase(900_000, 2048, {32: 1.0}, FEW_WORDS, FAST_DECAYING),
        Phase(600_000, 2048, {32: 0.5, 64: 0.5}, EVERY_WORD, FAST_DECAYING),
        Phase(2_500_000, 4096, {32: 0.2, 64: 0.5, 128: 0.3}, EVERYTHING, FAST_DECAYING),
        Phase(233_000, 4096, {64: 0.3, 128: 0.2, 512: 0.5}, EVERYTHING, FAST_DECAYING),
        Phase(900_000, 2048, {32: 1.0}, FEW_WORDS_AND_FACTS, FAST),
        Phase(1_148_000, 2048, {32: 0.4, 64: 0.6}, MORE_WORDS, FAST),
        Phase(819_000, 2048, {32: 0.5, 64: 0.5}, BINDING, FAST),
        Phase(1_200_000, 2048, {32: 0.7, 64: 0.3}, BINDING, CALM),
        Phase(57_000, 4096, {64: 0.45, 128: 0.2, 512: 0.35}, READING, CALM),
        Phase(1_500_000, 2048, {32: 1.0}, FEW_FACTS, CALM),
        Phase(1_777_000, 2048, {32: 0.4, 64: 0.6}, MORE_FACTS, CALM),
        Phase(2_000_000, 2048, {32: 0.4, 64: 0.6}, SHORT_READING, CALM),
        Phase(4_000_000, 4096, {64: 0.5, 128: 0.3, 512: 0.2}, LONG_READING, CALM),
    ),
    warmup_tokens=100_000,
    cooldown_tokens=4_500_000,
)
