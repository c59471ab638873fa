"""Data sets as the Hub lays them out: streamed from there, or read from a folder that was downloaded."""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mvquant.errors import CalibrationError

_SHARD = re.compile(r"(?:^|[-._])\d{5}-of-\d{5}")
_CONFIGURED = re.compile(r"^\s*(configs|dataset_info):", re.MULTILINE)

_FIRST_FILES = {
    "allenai/c4": "{configuration}/c4-train.00000-of-*.json.gz",
    "HuggingFaceH4/ultrachat_200k": "data/train_sft-*",
    "Salesforce/wikitext": "{configuration}/*",
}
"""What of usual data sets is enough to calibrate with; C4 as a whole has hundreds of gigabytes."""

_USUAL = {"allenai/c4": "en", "Salesforce/wikitext": "wikitext-2-raw-v1"}
"""Configurations that are taken most."""

_LOCAL_WAY_OUT = (
    "If its card (README.md) lists files that were not downloaded, download them too, or remove the card; or give a "
    "single file as the source."
)


def is_hub_layout(folder: Path, configuration: str | None) -> bool:
    """Tell whether a folder is a data set as the Hub has it: a card that lists its files, or numbered shards of splits.

    A configuration without a card is a folder below.
    """
    card = folder / "README.md"
    if card.is_file() and _CONFIGURED.search(_front_matter(card)):
        return True
    inner = folder if configuration is None else folder / configuration
    return any(_SHARD.search(file.name) for file in inner.rglob("*"))


def _front_matter(card: Path) -> str:
    """Return the YAML at the top of a data set card."""
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    return parts[1] if len(parts) == 3 and not parts[0].strip() else ""


def hub_rows(name: str, configuration: str | None, split: str | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set: streamed, or from the local cache where the Hub is switched off.

    Args:
        name: its id on the Hub, or a folder with its files.
        configuration: which of its parts; the only one by default.
        split: by default `train`, or the first that begins with that word.

    Raises:
        CalibrationError: it cannot be had, or has no such configuration or split.
    """
    from datasets import config

    place, part = name, configuration
    local = Path(name).is_dir()
    if local and configuration is not None and not _CONFIGURED.search(_card(Path(name))):
        place, part = str(Path(name) / configuration), None
    with _explained(name, configuration, split, local=local):
        splits = _splits(place, part, streaming=local or not config.HF_HUB_OFFLINE)
        yield from splits[_chosen_split(list(splits), split, name)]


def _splits(place: str, part: str | None, *, streaming: bool) -> Mapping[str, Iterable[dict[str, Any]]]:
    from datasets import load_dataset

    try:
        return cast("Any", load_dataset(place, part, streaming=streaming))
    except StopIteration:  # what datasets says of patterns that match no file
        raise FileNotFoundError("it lists files that are not there") from None


def _card(folder: Path) -> str:
    card = folder / "README.md"
    return _front_matter(card) if card.is_file() else ""


def _chosen_split(known: list[str], wanted: str | None, name: str) -> str:
    chosen = wanted or next(
        (split for split in ("train", *known) if split in known and split.startswith("train")), None
    )
    if chosen not in known:
        asked = f"has no split {wanted!r}" if wanted else "has no split `train`"
        message = f"calibration dataset {name!r} {asked}; choose one of its own with `split`: {', '.join(known)}"
        raise CalibrationError(message)
    return chosen


@contextmanager
def _explained(name: str, configuration: str | None, split: str | None, *, local: bool) -> Generator[None]:
    """Say what to download where a data set cannot be read."""
    from datasets.exceptions import DatasetsError
    from httpx import HTTPError

    try:
        yield
    # A missing dataset is a FileNotFoundError, no network a ConnectionError (both OSError) or an error of httpx; an
    # unknown configuration is a ValueError.
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        reason = " ".join((str(error) or type(error).__name__).splitlines()[:2])
        which = f"split {split!r}" if split else "its first training split"
        message = f"calibration dataset {name!r} ({which}) could not be loaded: {reason}"
        raise CalibrationError(f"{message}\n{_LOCAL_WAY_OUT if local else _way_out(name, configuration)}") from error


def _way_out(name: str, configuration: str | None) -> str:
    """Say how to bring a data set here."""
    part = configuration or _USUAL.get(name)
    pattern = _FIRST_FILES.get(name)
    include = "" if pattern is None else f" --include '{pattern.format(configuration=part)}'"
    source = "DIR" if part is None else f"DIR:{part}"
    return (
        f"Download it where there is a network with `hf download --repo-type dataset {name}{include} --local-dir DIR`, "
        f"and give {source} as the source; a local text file does as well."
    )
