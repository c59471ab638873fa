"""Byte-level BPE trained on the corpus: digits stay single, listed words become one token."""

from collections.abc import Iterable
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mvquant.reference.corpus import (
    Source,
    bindings,
    city_checks,
    city_recall,
    conflicts,
    document_text,
    passkeys,
    repeated_words,
    reviews,
    sums,
)

VOCAB_SIZE = 2048
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
CONTEXT = 512

# Words of the closed lists are rarer in stories than in lists, hence the plain repetitions.
_SOURCES: tuple[Source, ...] = (
    *(repeated_words,) * 6,
    *(city_recall,) * 8,
    bindings,
    city_checks,
    conflicts,
    passkeys,
    reviews,
    sums,
)


def train_bpe(texts: Iterable[str]) -> Tokenizer:
    """Train the byte-level BPE; the result depends on the texts alone."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return bpe


def build_tokenizer(seed: int, documents: int = 200) -> PreTrainedTokenizerFast:
    """Train the reference model's tokenizer on that many generated documents of each kind."""
    rng = Random(seed)
    texts = [document_text(source, rng, 256) for _ in range(documents) for source in _SOURCES]
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(texts),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
