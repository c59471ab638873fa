"""The real city facts that the reference model memorizes: one table, read once."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parent / "facts" / "cities.tsv"


class CityFact(NamedTuple):
    """One row of the table, e.g. ``CityFact("Lagos", "Nigeria")``."""

    city: str
    country: str


@cache
def city_facts() -> tuple[CityFact, ...]:
    """Return every city with its country, sorted by city.

    >>> len(city_facts()) >= 800
    True
    """
    with TABLE.open(encoding="utf-8", newline="") as table:
        rows = csv.DictReader(table, delimiter="\t")
        return tuple(CityFact(row["city"], row["country"]) for row in rows)


@cache
def countries() -> tuple[str, ...]:
    """Return the countries of the table, sorted; each has equally many cities.

    >>> "Nigeria" in countries()
    True
    """
    return tuple(sorted({fact.country for fact in city_facts()}))
