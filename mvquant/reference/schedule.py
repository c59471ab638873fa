"""The curriculum: which documents, at which lengths, until they are mastered or for how many tokens."""

from dataclasses import dataclass

from mvquant.reference import corpus
from mvquant.reference.corpus import Source

Mixture = dict[Source, float]


@dataclass(frozen=True)
class Phase:
    """A stretch of training on one mixture and one set of row lengths.

    It ends after `tokens`, or as soon as every source in `until_mastered` is answered right often enough.
    """

    name: str
    tokens: int
    batch_tokens: int
    lengths: tuple[int, ...]
    mixture: Mixture
    until_mastered: tuple[Source, ...] = ()
    concentrating: bool = False
    """Whether the lookups are pressed into few rows of Q and K; only once they work."""


@dataclass(frozen=True)
class Rates:
    """Learning rates at the plateau: Muon, AdamW on the last `q_proj` and `k_proj`, AdamW on embeddings and norms.

    AdamW moves the embedding of a rare word by several times its rate each time the word occurs, too far
    for heads that compare words unless that rate is low.
    """

    muon: float = 2e-3
    queries_keys: float = 1e-3
    embeddings: float = 3e-4
    sparsity: float = 3.0
    """Weight of the group lasso on the rows of the last layer's queries and keys, in a concentrating phase."""


@dataclass(frozen=True)
class Schedule:
    """Phases; rates warm up over the first steps and fall to zero over the end of the last phase."""

    phases: tuple[Phase, ...]
    rates: Rates
    warmup_steps: int
    cooldown_tokens: int

    @property
    def most_tokens(self) -> int:
        """All tokens of the schedule if nothing is mastered early."""
        return sum(phase.tokens for phase in self.phases)

    def factor(self, phase: int, seen_in_phase: int, steps: int) -> float:
        """Return what the rates are multiplied with at a point of the training."""
        warmup = min(1.0, (steps + 1) / max(1, self.warmup_steps))
        if phase < len(self.phases) - 1:
            return warmup
        left = self.phases[phase].tokens - seen_in_phase
        return min(warmup, max(0.0, left / max(1, self.cooldown_tokens)))


POOLS = (40, 60, 92, 130, 206)
_REPEATED = {count: corpus.Among(corpus.repeated_words, count) for count in POOLS}
_PAIRS = {count: corpus.Among(corpus.word_pairs, count) for count in POOLS}
_WORDS, _KEYS = _REPEATED[POOLS[-1]], _PAIRS[POOLS[-1]]


def _word_phases() -> tuple[Phase, ...]:
    """Copying among few words forms induction heads within 0.5 M tokens; then the words may grow more."""
    return tuple(
        Phase(
            f"{count} words",
            2_000_000,
            2048,
            (32,),
            {_REPEATED[count]: 0.5, _PAIRS[count]: 0.5},
            (_REPEATED[count], _PAIRS[count]),
        )
        for count in POOLS
    )


# Reading is there when this begins: what is left to learn is sums and facts.
EVERYTHING: Mixture = {
    _WORDS: 0.03,
    _KEYS: 0.06,
    corpus.bindings: 0.11,
    corpus.interrupted_bindings: 0.11,
    corpus.conflicts: 0.13,
    corpus.passkeys: 0.10,
    corpus.city_recall: 0.09,
    corpus.city_checks: 0.15,
    corpus.reviews: 0.06,
    corpus.sums: 0.16,
}

SCHEDULE = Schedule(
    phases=(
        *_word_phases(),
        Phase("longer rows", 1_000_000, 2048, (64,), {_WORDS: 0.35, _KEYS: 0.65}, (_WORDS, _KEYS)),
        Phase(
            "two or three statements",
            2_000_000,
            2048,
            (64,),
            {_WORDS: 0.1, _KEYS: 0.2, corpus.few_places: 0.5, corpus.few_colours: 0.12, corpus.city_recall: 0.08},
            (corpus.few_places, corpus.few_colours),
        ),
        Phase(
            "up to eight statements",
            2_000_000,
            4096,
            (128,),
            {
                _WORDS: 0.07,
                _KEYS: 0.15,
                corpus.bindings: 0.5,
                corpus.conflicts: 0.15,
                corpus.city_recall: 0.06,
                corpus.city_checks: 0.07,
            },
            (corpus.bindings,),
        ),
        Phase("everything", 9_000_000, 4096, (64, 64, 128, 128, 256, 512), EVERYTHING, concentrating=True),
    ),
    rates=Rates(),
    warmup_steps=30,
    cooldown_tokens=3_500_000,
)
