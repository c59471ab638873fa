"""Where calibration data comes from: local files, folders as the Hub lays them out, or the Hub itself.

A source is read up to `MOST_ROWS` rows where it may be a web corpus: on the Hub, in its layout, or compressed.
"""

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mvquant.calibration.conversations import COLUMNS, Conversation, as_conversation
from mvquant.calibration.hub import hub_rows, is_hub_layout
from mvquant.errors import CalibrationError

MOST_ROWS = 20_000
"""Rows read of a data set: far more text than statistics need, far less than a web corpus."""

_LOOKED_AT = 100
"""Rows in which columns with text or conversations are looked for: some may be empty."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")

Text = str | Conversation
Row = dict[str, Any]


def calibration_texts(source: str, split: str | None = None, column: str | None = None) -> list[Text]:
    """Read the texts or conversations of a local file, a folder, or a Hub data set.

    Args:
        source: a `.txt` file (one text), a `.jsonl`, `.json` or `.parquet` file (one text or conversation per row; JSON
            also with `.gz`), a folder of such files, or a Hub data set, with its configuration after a colon:
            `allenai/c4:en`. A folder may be one that `hf download --repo-type dataset` made, with a colon too.
        split: of a Hub data set or of a folder laid out like one; by default `train`, or the first that begins so.
        column: that holds the text or the conversation; by default one with conversations (`messages`,
            `conversations`), or `text`, or the only column with strings.

    Raises:
        CalibrationError: no such file or data set, or nothing usable in it.
    """
    texts = [text for text in _read(source, split, column) if not isinstance(text, str) or text.strip()]
    if not texts:
        message = f"calibration source {source!r} holds no text: give a file, a folder or a data set with some in it"
        raise CalibrationError(message)
    return texts


def _read(source: str, split: str | None, column: str | None) -> Iterable[Text]:
    path, configuration = _local(source)
    if path is not None and path.is_dir() and is_hub_layout(path, configuration):
        return _column_texts(
            list(itertools.islice(hub_rows(str(path), configuration, split), MOST_ROWS)), column, source
        )
    if path is not None:
        inner = path if configuration is None else path / configuration
        return [text for file in _text_files(inner) for text in _reader(file)(file, column)]
    if Path(source).suffix in _READERS or not _HUB_ID.fullmatch(source):
        message = f"calibration source {source!r} does not exist; give a file ({_KNOWN}), a folder, or a Hub dataset id"
        raise CalibrationError(message)
    name, _, named = source.partition(":")
    rows = itertools.islice(hub_rows(name, named or None, split), MOST_ROWS)
    return _column_texts(list(rows), column, source)


def _local(source: str) -> tuple[Path | None, str | None]:
    """Return a file or folder and what follows it after a colon; nothing where there is no such path."""
    if Path(source).exists():
        return Path(source), None
    folder, _, configuration = source.rpartition(":")
    return (Path(folder), configuration) if folder and Path(folder).is_dir() else (None, None)


def _text_files(path: Path) -> list[Path]:
    """Return the file itself, or the known files below a folder in the order of their names."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    known = [file for file in files if file.is_file() and _kind(file) in _READERS]
    if not known:
        message = f"{path} is no calibration text that mvquant can read ({_KNOWN})"
        raise CalibrationError(message)
    return known


def _kind(file: Path) -> str:
    """Return the suffix that says what is in a file: `.jsonl`, or `.jsonl.gz`."""
    return "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix


def _reader(file: Path) -> "Reader":
    return _READERS[_kind(file)]


def _read_txt(file: Path, _column: str | None) -> list[Text]:
    return [_content(file)]


def _read_json(file: Path, column: str | None) -> list[Text]:
    """Read one object per line, or a single list of objects."""
    content = _content(file)
    if content.lstrip().startswith("["):
        return _column_texts(_json_list(file, content), column, str(file))
    # Not `splitlines`: JSON strings may hold U+2028 and other line ends as they are.
    return _column_texts(list(_json_rows(file, content.split("\n"))), column, str(file))


def _read_gzip(file: Path, column: str | None) -> list[Text]:
    """Read the first rows of a compressed file of one object per line."""
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            rows = list(itertools.islice(_json_rows(file, lines), MOST_ROWS))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        message = f"{file} cannot be read as compressed UTF-8 text: {error}"
        raise CalibrationError(message) from None
    return _column_texts(rows, column, str(file))


def _json_rows(file: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
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
        yield row


def _json_list(file: Path, content: str) -> list[Row]:
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        message = f"{file}, line {error.lineno} is not JSON: {error}"
        raise CalibrationError(message) from None
    wrong = next((index for index, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if wrong is not None:
        message = f"{file}, line 1 is not a JSON object with a text in it, but a list; nor is its entry {wrong} one"
        raise CalibrationError(message)
    return rows


def _read_parquet(file: Path, column: str | None) -> list[Text]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(file).to_pylist()
    except (arrow.ArrowException, OSError) as error:  # pages that are corrupt are an OSError
        message = f"{file} cannot be read as parquet: {error}"
        raise CalibrationError(message) from None
    return _column_texts(rows, column, str(file))


def _content(file: Path) -> str:
    """Read a text file, with a newline for every end of a line."""
    try:
        return file.read_bytes().decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        message = f"{file} is not UTF-8 text: {error}"
    raise CalibrationError(message)


Reader = Callable[[Path, str | None], list[Text]]
_READERS: dict[str, Reader] = {
    ".txt": _read_txt,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".jsonl.gz": _read_gzip,
    ".json.gz": _read_gzip,
}
_KNOWN = ".txt, .jsonl, .json, .parquet, .jsonl.gz, .json.gz"


def _column_texts(rows: list[Row], column: str | None, where: str) -> list[Text]:
    """Return the texts or conversations of one column of a table."""
    if not rows:
        return []
    chosen = _chosen_column(rows, column, where)
    cells = (row.get(chosen) for row in rows)
    texts = (cell if isinstance(cell, str) else as_conversation(cell) for cell in cells)
    return [text for text in texts if text is not None]


def _chosen_column(rows: list[Row], column: str | None, where: str) -> str:
    if column and any(_is_text(row.get(column)) for row in rows):
        return column
    looked_at = rows[:_LOOKED_AT]
    names = list(dict.fromkeys(name for row in looked_at for name in row))
    strings = [name for name in names if any(isinstance(row.get(name), str) for row in looked_at)]
    talks = [name for name in names if any(as_conversation(row.get(name)) for row in looked_at)]
    usual = next((name for name in (*COLUMNS, "text") if name in [*talks, *strings]), None)
    chosen = usual or (strings[0] if len(strings) == 1 else None)
    if chosen and not column:
        return chosen
    wanted = f"no column {column!r} with text" if column else "no column 'text', and not exactly one with text"
    kinds = f"its text columns: {', '.join(strings) or 'none'}"
    kinds += f"; with conversations: {', '.join(talks)}" if talks else ""
    message = f"{where} has {wanted}; {kinds} (choose one)"
    raise CalibrationError(message)


def _is_text(cell: Any) -> bool:  # noqa: ANN401 - a cell of any table
    return isinstance(cell, str) or as_conversation(cell) is not None
