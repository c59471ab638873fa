"""JSON that a person reads and edits."""

import re

_NUMBERS = re.compile(r"\[\n([-+.,\de\s]+)\n *\]")
"""An array of numbers alone, in JSON with a line for each; a string holds no line break."""


def numbers_in_a_row(text: str) -> str:
    """Put arrays of numbers in indented JSON on one line each.

    >>> import json
    >>> print(numbers_in_a_row(json.dumps({"bits": [2, 4], "names": ["a"]}, indent=1)))
    {
     "bits": [2, 4],
     "names": [
      "a"
     ]
    }
    """
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
