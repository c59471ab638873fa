"""Tasks whose data is not there: named all at once, with the way to each."""

from collections.abc import Sequence
from dataclasses import dataclass

from mvquant.evaluation.hub_data import VARIABLE


@dataclass(frozen=True)
class MissingTask:
    """A task that cannot be asked.

    Attributes:
        name: of the task.
        why: what was looked for, and where.
        way_out: a command, or what to do.
    """

    name: str
    why: str
    way_out: str


def describe_missing(missing: Sequence[MissingTask]) -> str:
    """Say of every task why it has no data, and how to get it.

    >>> print(describe_missing([MissingTask("sums", "sums: not in here", "hf download a/sums --local-dir DATA/sums")]))
    no data for sums:
      - sums: not in here
    To have it here, run where there is a network:
      hf download a/sums --local-dir DATA/sums
    and name the folder DATA with --data-dir or MVQUANT_DATA.
    """
    lines = [f"no data for {', '.join(task.name for task in missing)}:"]
    lines += [f"  - {why}" for why in dict.fromkeys(task.why for task in missing)]
    ways = {task.way_out: [other.name for other in missing if other.way_out == task.way_out] for task in missing}
    commands = [way for way in ways if "DATA/" in way]
    if commands:
        lines += ["To have it here, run where there is a network:", *(f"  {way}" for way in commands)]
        lines.append(f"and name the folder DATA with --data-dir or {VARIABLE}.")
    lines += [f"For {', '.join(names)}: {way}." for way, names in ways.items() if way not in commands]
    return "\n".join(lines)
