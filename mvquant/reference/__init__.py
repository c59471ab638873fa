"""The embedded reference model: a small Llama trained on generated text, where reading and recall can be told apart."""

from pathlib import Path
from random import Random

from mvquant.errors import CheckpointError
from mvquant.reference.corpus import document_text
from mvquant.reference.schedule import SCHEDULE

__all__ = ["reference_path", "reference_texts"]

_WEIGHTS = Path(__file__).parent / "weights"
_WORDS_PER_TEXT = 400


def reference_path() -> Path:
    """Return the folder of the reference model, an ordinary transformers checkpoint.

    Raises:
        CheckpointError: The weights are missing from this installation.
    """
    if not (_WEIGHTS / "model.safetensors").is_file():
        raise CheckpointError(
            f"the reference model is missing from {_WEIGHTS}; reinstall mvquant, "
            f"or train it: python -m mvquant.reference.train -o {_WEIGHTS}"
        )
    return _WEIGHTS


def reference_texts(characters: int = 400_000, seed: int = 0) -> list[str]:
    """Return calibration documents from the last training mixture, under seeds of their own.

    >>> reference_texts(characters=1) == reference_texts(characters=1)
    True
    """
    rng = Random(f"calibration:{seed}")
    mixture = SCHEDULE.phases[-1].mixture
    texts: list[str] = []
    while characters > 0:
        source = rng.choices(list(mixture), list(mixture.values()))[0]
        texts.append(document_text(source, rng, _WORDS_PER_TEXT))
        characters -= len(texts[-1])
    return texts
