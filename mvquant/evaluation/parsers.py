r"""What a generated text answers. Every parser finds one answer in its normal form, or says that there is none.

The answer is compared with the right one as a whole: no parser looks for the right answer in the text.

Each parser has a twin for lm-evaluation-harness's `custom` filter, so that a task file means the same to both:

    filter_list:
      - name: number
        filter:
          - {function: custom, filter_fn: !function mvquant.evaluation.parsers.number_filter}
          - {function: take_first}
"""

import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

INVALID = "[invalid]"
"""The prediction where a text holds no answer; it equals no answer."""

Parser = Callable[[str], str]

_NUMBER = re.compile(
    r"(?<![\w.^])(?<!\d,)(?P<sign>[-+]?)[$€£]?(?P<second>-?)"  # a hyphen after a digit is no sign
    r"(?P<size>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,2})?|\.\d+)"
    r"(?:/(?P<parts>\d+))?(?![\d^]|,\d{3}|\.\d|[eE][-+]?\d)"
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SAYS = r"(?:is|would\s+be|equals)\b"
_ANSWER = re.compile(
    r"\b(?:answer|(?:correct|right|final|best)\s+(?:option|choice))\b"
    rf"(?:\s+(?:to|for)\b[^\n.:=]{{0,80}}?(?=\s{_SAYS}))?"  # "the answer to the problem is"
    rf"[\s*_]*(?:{_SAYS}[*_]*\s*[:=]?|[:=])\s*"
    r"|^[#*_ \t]*(?:(?:final|correct)\s+)?answer[*_ \t]*\n\s*"  # a heading
    r"|\banswer(?=[ \t]+(?:(?:option|choice)[ \t]+)?[*_(\[]*[A-E][*_)\]]*\.?\)?[ \t]*$)",  # "Answer D", and no more
    re.IGNORECASE | re.MULTILINE,
)
_OPERATOR = re.compile(r"[\w)]\s*[-+*/\u00d7\u00f7\u00b7^]\s*[\w($]")
_LATEX = (
    (r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),
    (r"\{,\}", ","),
    (r"\\[,!; ]", ""),
    (r"\\\$", "$"),
    ("\u2212", "-"),
)


def number(text: str) -> str:
    r"""Find the number that a text ends in or marks as its answer: after `####`, in `\boxed{}`, after "answer is".

    Of marks of one kind the last counts, of a calculation its result: the last side if that is one number,
    otherwise the first if that is, as in `18 = 9 * 2`.

    >>> number("2 apples cost $3, so 24 cost 1,036.50.\n#### $1,036.50 for the 24 of them"), number("nothing")
    ('1036.5', '[invalid]')
    """
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    marked = _marked(text)
    if marked is not None:
        found = _NUMBER.search(_result(marked))
        return INVALID if found is None else _plain(found)
    numbers = list(_NUMBER.finditer(text))
    return _plain(numbers[-1]) if numbers else INVALID


def _marked(text: str) -> str | None:
    """Everything on the line after the last mark of the first kind that there is; None if nothing is marked."""
    if "####" in text:
        return _line(text.rsplit("####", 1)[1])
    if boxed := _BOXED.findall(text):
        return str(boxed[-1])
    beyond = len(text)
    for mark in reversed(list(_ANSWER.finditer(text))):
        said = _line(text[mark.end() : beyond])
        if _NUMBER.search(said):
            return said
        beyond = mark.start()
    return None


def _line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


def _result(calculation: str) -> str:
    """The side of a calculation that is a number and not a sum; the last one where both or neither are."""
    sides = calculation.split("=")
    first, last = sides[0], sides[-1]
    return first if _is_one_number(first) and not _is_one_number(last) else last


def _is_one_number(side: str) -> bool:
    numbers = list(_NUMBER.finditer(side))
    return len(numbers) == 1 and not _OPERATOR.search(side[: numbers[0].start()] + "0" + side[numbers[0].end() :])


def _plain(found: re.Match[str]) -> str:
    size, parts = found["size"].replace(",", ""), int(found["parts"] or 1)
    if parts == 0:
        return INVALID
    value = Fraction(Decimal(size)) / parts
    if "-" in found["sign"] + found["second"]:
        value = -value
    if found["parts"]:
        return str(value)
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"


_WRAPPED = re.compile(
    r"(?:\$\$?\s*|\\[(\[]\s*|[\"'`\u201c\u2018])(?:\\(?:text|textbf|mathrm|mathbf)\{)?"
    r"(?:(?P<bare>[A-E])|[(\[]\s*(?P<bracketed>[A-Ea-e])\s*[)\]])\}?"
    r"(?:\s*\$\$?|\s*\\[)\]]|[\"'`\u201d\u2019])"
)
_NO_NOUN = (
    r"(?:and|as|at|because|but|by|for|from|hence|if|in|is|of|on|or|since|that|therefore|thus|to|was|when|where|which"
    r"|while|with)\b"
)
_ARTICLE = rf"A[ \t]+(?!{_NO_NOUN})[a-z]"
_LETTER = re.compile(
    r"[\s*_:\"'`\u201c\u2018]*(?:\\(?:text|textbf|mathrm|mathbf)\{)?(?:(?:option|choice)\s+)?"
    rf"(?:[(\[]\s*(?P<bracketed>[A-Ea-e])\s*[)\]]|(?!{_ARTICLE})(?P<bare>[A-E])(?!\w|['\u2019-]\w))"
    r"(?![\s)*_}]*(?:,\s*(?:or\b|and\b)?|or\b|and\b|/|&)\s*(?:(?:option|choice)\s+)?[(*_]*[A-E]\b)"
)
_UNDECIDED = re.compile(r"\([A-E]\)|\b(?:not|wrong|incorrect|false)\b", re.IGNORECASE)
_LETTER_LINE = re.compile(r"[(\[]?(?P<letter>[A-E])(?:[)\]](?:\s.*)?|[.:]\s.*|[.:]?)")


def letter(text: str) -> str:
    r"""Find the option, A to E, that a text marks as its answer, or that is all that its last (or only) line says.

    An A that begins a sentence ("A bag holds 5") is no option, and two options are no answer.

    >>> [letter(text) for text in ("So it is 24.\nThe answer is (B).", "B) 24", "A train is faster", "A or B")]
    ['B', 'B', '[invalid]', '[invalid]']
    """
    said = _WRAPPED.sub(lambda found: f"({found['bare'] or found['bracketed']})", text)
    marks = [said.rsplit("####", 1)[1]] if "####" in said else []
    marks += reversed(_BOXED.findall(said))
    marks += [said[match.end() :] for match in reversed(list(_ANSWER.finditer(said)))]
    for mark in marks:
        if found := _LETTER.match(mark):
            return (found["bracketed"] or found["bare"]).upper()
    lines = [line.strip().strip("*_ ") for line in text.split("\n") if line.strip()]
    for line in lines[-1:] + lines[:1]:
        found = _LETTER_LINE.fullmatch(line)
        if found and not _UNDECIDED.search(line[found.end("letter") :]):
            return found["letter"]
    return INVALID


def word(text: str) -> str:
    """Return the one word, in small letters, that a text says before its first stop; articles do not count.

    >>> [word(text) for text in (" Garden. The cup", "the garden", "garden shed", "incorrect")]
    ['garden', 'garden', '[invalid]', 'incorrect']
    """
    said = re.split(r"[\n.,;:!?()]", text.strip().strip("\"'*“”"), maxsplit=1)[0]
    words = [each.strip("\"'*“”") for each in said.casefold().split()]
    while len(words) > 1 and words[0] in {"the", "a", "an"}:
        words = words[1:]
    return words[0] if len(words) == 1 and words[0] else INVALID


def key(text: str) -> str:
    """Return the first whole number of a text, digit by digit.

    >>> key(" 07314. Remember it."), key("073145"), key("07,314"), key("none")
    ('07314', '073145', '07314', '[invalid]')
    """
    found = re.search(r"\d{1,3}(?:,\d{3})+(?![\d,])|\d+", text)
    return INVALID if found is None else found[0].replace(",", "")


PARSERS: dict[str, Parser] = {"number": number, "letter": letter, "word": word, "key": key}

Responses = Iterable[Sequence[str]]


def number_filter(responses: Responses, docs: Sequence[object]) -> list[list[str]]:
    """`number` for the harness."""
    return _each(number, responses, docs)


def letter_filter(responses: Responses, docs: Sequence[object]) -> list[list[str]]:
    """`letter` for the harness."""
    return _each(letter, responses, docs)


def word_filter(responses: Responses, docs: Sequence[object]) -> list[list[str]]:
    """`word` for the harness."""
    return _each(word, responses, docs)


def key_filter(responses: Responses, docs: Sequence[object]) -> list[list[str]]:
    """`key` for the harness."""
    return _each(key, responses, docs)


def _each(parse: Parser, responses: Responses, docs: Sequence[object]) -> list[list[str]]:
    del docs
    return [[parse(text) for text in texts] for texts in responses]
