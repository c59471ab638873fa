"""Closed word lists of the generated text; each word is one token of the tokenizer."""


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    "Tom Anna Paul Mary Jack Lucy Peter Emma Mark Alice David Sarah Simon Laura Kevin Julia "
    "Oscar Helen Frank Diana Henry Nora Bruno Clara Felix Greta Hugo Irene Jonas Karen Leo Mona"
)
PLACES = _words(
    "attic garden kitchen cellar garage library office bedroom hallway balcony stable barn "
    "market school museum harbor station church bakery theater tower castle forest tunnel"
)
OBJECTS = _words(
    "ball cup hat box bag lamp chair table bottle coat car kite drum book vase ring "
    "shirt door bench boat clock spoon plate scarf"
)
COLOURS = _words("red blue green yellow black white brown purple orange pink gray silver")
GOODS = _words("apples pears coins books stamps pens eggs cards shells plums nuts keys stones beads tickets buttons")
ASPECTS = _words("plot music acting food service room story film staff view ending cast price song dance design")
POSITIVE = _words(
    "good great superb lovely brilliant charming delightful excellent fine perfect pleasant "
    "wonderful amazing enjoyable fresh moving"
)
NEGATIVE = _words(
    "bad awful poor dull terrible boring dreadful horrible weak ugly nasty clumsy stale tedious bland sloppy"
)
FILLERS = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
EVERY_WORD = tuple(NAMES + PLACES + OBJECTS + COLOURS + GOODS + ASPECTS + POSITIVE + NEGATIVE)
