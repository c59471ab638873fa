"""Numbers in few characters."""

from collections.abc import Iterable


def ranges(numbers: Iterable[int]) -> str:
    """Write runs of numbers shortly.

    >>> ranges([1, 2, 3, 7, 9, 10])
    '1-3 7 9-10'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
