"""Calibration text in, token sequences out.

Text comes from the caller, from local files (.txt, .jsonl, .parquet, or a folder of them) or from the Hub
through `datasets`. The seed chooses which windows of it are used; no sequence is padded.
"""

import itertools
import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvquant.errors import CalibrationError

logger = logging.getLogger(__name__)

MOST_ROWS = 20_000
"""Rows read from a Hub dataset: far more text than statistics need, far less than a web corpus."""

_SPARE = 4
"""Text is tokenized until there is this many times what is asked for, so that the seed has a choice."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def calibration_texts(source: str, split: str | None = None, column: str | None = None) -> list[str]:
    """Read the texts of a local file, a folder of files, or a Hub dataset.

    Args:
        source: a `.txt` (one text), `.jsonl` or `.parquet` file (one text per row), a folder of them, or
            a Hub dataset id, with its configuration after a colon: `Salesforce/wikitext:wikitext-2-raw-v1`.
        split: of a Hub dataset; `train` by default.
        column: that holds the text; by default `text`, or the only column with strings.

    Raises:
        CalibrationError: no such file or dataset, or no text in it.
    """
    path = Path(source)
    if path.exists():
        texts = [text for file in _text_files(path) for text in _READERS[file.suffix](file, column)]
    elif path.suffix in _READERS or not _HUB_ID.fullmatch(source):
        message = f"calibration source {source!r} does not exist; give a file ({_KNOWN}), a folder, or a Hub dataset id"
        raise CalibrationError(message)
    else:
        texts = _hub_texts(source, split or "train", column)
    texts = [text for text in texts if text.strip()]
    if not texts:
        message = f"calibration source {source!r} holds no text"
        raise CalibrationError(message)
    return texts


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], sequences: int, length: int, seed: int
) -> list[Int64[Tensor, "1 length"]]:
    """Pack texts into full token sequences.

    A text of at least one sequence gives windows of its own; shorter ones are joined, with the tokenizer's
    end-of-text token between them. Every sequence begins as the tokenizer begins a text (`<s>`, say).

    Args:
        tokenizer: of the model to calibrate.
        texts: see `calibration_texts`.
        sequences: how many to return; fewer where the text gives no more.
        length: tokens in a sequence.
        seed: chooses which windows of which texts.

    Raises:
        CalibrationError: not text enough for one sequence.

    Returns:
        Up to `sequences` tensors of token ids.
    """
    start = _start_tokens(tokenizer)
    body = length - len(start)
    if body < 1 or sequences < 1:
        message = f"calibration needs at least one sequence of {len(start) + 1} tokens, not {sequences} of {length}"
        raise CalibrationError(message)
    rng = random.Random(seed)
    shuffled = rng.sample(texts, len(texts))
    tokens = (_tokenize(tokenizer, text) for text in shuffled)
    separator = _special(tokenizer.eos_token_id)
    windows = list(itertools.islice(_windows(tokens, body, separator), _SPARE * sequences))
    if not windows:
        count = sum(len(_tokenize(tokenizer, text)) for text in texts)
        message = (
            f"the calibration text is too short: {len(texts)} texts with {count} tokens, but one sequence of "
            f"{length} needs {body}; give more text or a smaller length"
        )
        raise CalibrationError(message)
    if len(windows) < sequences:
        logger.warning("the calibration text gives %d sequences of %d tokens, not %d", len(windows), length, sequences)
    chosen = rng.sample(windows, min(sequences, len(windows)))
    return [torch.tensor([start + window]) for window in chosen]


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before every text: `[bos]` or nothing."""
    bos = _special(tokenizer.bos_token_id)
    return bos if tokenizer("a")["input_ids"][:1] == bos else []


def _special(token_id: Any) -> list[int]:  # noqa: ANN401
    """Return a special token's id; nothing where the tokenizer has none."""
    return [token_id] if isinstance(token_id, int) else []


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _windows(texts: Iterable[list[int]], body: int, separator: list[int]) -> Iterator[list[int]]:
    """Yield windows of `body` tokens, of one text where it is long enough."""
    joined: list[int] = []
    for tokens in texts:
        if len(tokens) >= body:
            yield from (tokens[begin : begin + body] for begin in range(0, len(tokens) - body + 1, body))
            continue
        joined += [*(separator if joined else []), *tokens]
        if len(joined) >= body:
            yield joined[:body]
            joined = joined[body:]


def _text_files(path: Path) -> list[Path]:
    """Return the file itself, or the known files below a folder in the order of their names."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    known = [file for file in files if file.suffix in _READERS]
    if not known:
        message = f"{path} is no calibration text that mvquant can read ({_KNOWN})"
        raise CalibrationError(message)
    return known


def _read_txt(file: Path, _column: str | None) -> list[str]:
    try:
        return [file.read_text(encoding="utf-8")]
    except UnicodeDecodeError as error:
        message = f"{file} is not UTF-8 text: {error}"
        raise CalibrationError(message) from None


def _read_jsonl(file: Path, column: str | None) -> list[str]:
    rows: list[dict[str, Any]] = []
    # Not `splitlines`: JSON strings may hold U+2028 and other line ends as they are.
    for number, line in enumerate(_read_txt(file, None)[0].split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{file}, line {number} is not JSON: {error}"
            raise CalibrationError(message) from None
        if not isinstance(row, dict):
            message = f"{file}, line {number} is not a JSON object with a text in it"
            raise CalibrationError(message)
        rows.append(row)
    return _column_texts(rows, column, str(file))


def _read_parquet(file: Path, column: str | None) -> list[str]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(file).to_pylist()
    except arrow.ArrowException as error:
        message = f"{file} cannot be read as parquet: {error}"
        raise CalibrationError(message) from None
    return _column_texts(rows, column, str(file))


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
_KNOWN = ", ".join(_READERS)


def _hub_texts(source: str, split: str, column: str | None) -> list[str]:
    """Read up to `MOST_ROWS` rows: streamed, or from the local cache where the Hub is switched off."""
    from datasets import config, exceptions, load_dataset

    name, _, configuration = source.partition(":")
    offline = bool(config.HF_HUB_OFFLINE)
    try:
        rows = load_dataset(name, configuration or None, split=split, streaming=not offline)
        first = list(itertools.islice(rows, MOST_ROWS))
    # A missing dataset is a FileNotFoundError, no network a ConnectionError (both OSError); an unknown
    # split or configuration is a ValueError.
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = (
            f"calibration dataset {name!r} (split {split!r}) could not be loaded: {reason}\n"
            f"Download it where there is a network with `hf download --repo-type dataset {name} --local-dir DIR`, "
            f"and give DIR (its .txt, .jsonl or .parquet files) as the source; a local text file does as well."
        )
        raise CalibrationError(message) from error
    return _column_texts(first, column, source)


def _column_texts(rows: list[dict[str, Any]], column: str | None, where: str) -> list[str]:
    """Return the texts of one column of a table."""
    if not rows:
        return []
    strings = [name for name, value in rows[0].items() if isinstance(value, str)]
    chosen = column or ("text" if "text" in strings else strings[0] if len(strings) == 1 else None)
    if chosen not in strings:
        wanted = f"no column {column!r} with text" if column else "no column 'text', and not exactly one with text"
        message = f"{where} has {wanted}; its text columns: {', '.join(strings) or 'none'} (choose one)"
        raise CalibrationError(message)
    return [row[chosen] for row in rows if isinstance(row.get(chosen), str)]
