import json
import re

import pytest

from mvquant.evaluation import parsers
from mvquant.evaluation.parsers import INVALID, PARSERS, key, letter, number, word


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 18", "18"),
        ("He pays 3 x 6 = $18.\n#### 18", "18"),
        ("#### 5\n\nNo, wait.\n#### 6", "6"),
        ("#### 5 (not 6)", "5"),
        ("#### $1,036.50.", "1036.5"),
        ("#### -4", "-4"),
        ("#### \u22124", "-4"),
        ("#### none of them, of 12", "12"),
        ("#### nobody knows\nas 12 left", INVALID),
        ("#### 18 = 9*2", "18"),
        ("#### 18 = 9*2 = 3*6", "18"),
        ("#### 9*2 = 18", "18"),
        ("#### x = 18 apples", "18"),
        ("#### **$18** = 2 x $9", "18"),
        ("#### 18 =", "18"),
        ("#### 2 - 6 = -4", "-4"),
        (r"So it is \boxed{18}. It was 7 before.", "18"),
        (r"\boxed{1{,}234\text{ dollars}}", "1234"),
        (r"\boxed{5} or rather \boxed{\$6}", "6"),
        (r"\boxed{\frac{3}{4}}", "3/4"),
        ("The answer is 18. 7 of them left.", "18"),
        ("The answer is 7 + 11 = 18.", "18"),
        ("**Answer:** 18 apples", "18"),
        ("**Answer**: 18, in 2 steps", "18"),
        ("The answer **is** 18, in 2 steps", "18"),
        ("The answer would be 18, in 2 steps", "18"),
        ("The answer = 18, in 2 steps", "18"),
        ("The answer to the problem is 18. It took 2 steps.", "18"),
        ("The answer for 3 people is 18", "18"),
        ("## Final Answer\n\n18\n\n(in 2 steps)", "18"),
        ("To answer this, we take 3 steps.\n7+6 = 13\nSo she has 13.", "13"),
        ("I can answer 3 questions.\nThere are 14.", "14"),
        ("The final answer is **42**.", "42"),
        ("The answer is unknown, but 42 fits.", "42"),
        ("First 3, then 12, in the end 18.", "18"),
        ("18.", "18"),
        ("It costs $18.00", "18"),
        ("That is 1,234,567 in all", "1234567"),
        ("1,234 and 56", "56"),
        ("They are 3-4 years old", "4"),
        ("20%", "20"),
        ("5 dollars, 60 km/h", "60"),
        (".5", "0.5"),
        ("0.50", "0.5"),
        ("6/4", "3/2"),
        ("6/3", "2"),
        ("1/0", INVALID),
        ("1e3", "1000"),
        ("1e999999999", INVALID),
        ("10^3", INVALID),
        ("1,2345", INVALID),
        ("version 1.2.3", INVALID),
        ("COVID19 or h2o", INVALID),
        ("", INVALID),
        ("no number", INVALID),
    ],
)
def test_number(text, answer):
    assert number(text) == answer


@pytest.mark.parametrize(
    ("text", "right"), [("#### 180", "18"), ("#### 118", "18"), ("#### 18.5", "18"), ("#### 3/4", "3")]
)
def test_a_number_that_contains_the_right_one_is_another(text, right):
    assert number(text) != right


def test_number_reads_every_answer_of_gsm8k_as_the_plain_digits_after_its_mark(shared_data):
    lines = (shared_data / "eval" / "gsm8k.test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 1319
    assert [number(answer) for answer in answers] == [answer.rsplit("#### ")[-1].replace(",", "") for answer in answers]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (B).", "B"),
        ("The answer is B", "B"),
        ("The answer is $C$", "C"),
        ("The answer is $$C$$", "C"),
        (r"The answer is $\text{C}$.", "C"),
        ('The answer is "C"', "C"),
        ("The answer is \u201cC\u201d.", "C"),
        ("The answer is 'C'.", "C"),
        ("The answer is `C`", "C"),
        (r"the answer is \(C\)", "C"),
        (r"the answer is \((C)\)", "C"),
        ("the answer is $(c)$", "C"),
        ("the answer is 'C) 24 apples'", "C"),
        ("The correct option is C.", "C"),
        ("The correct choice would be (B)", "B"),
        ("Correct option: D", "D"),
        ("So it is 24. Answer D", "D"),
        ("**Answer**: **B**\nI hope this helps.", "B"),
        ("## Answer\nB\nI hope this helps.", "B"),
        ("The answer is A because 3 + 4 = 7", "A"),
        ("The answer is A, because B is wrong", "A"),
        ("The answer is A is what I say.", "A"),
        ("Answer: A\nbag of 5", "A"),
        ("Answer: A - 24 apples", "A"),
        ("The correct answer is option C: 24", "C"),
        ("Answer: (b)", "B"),
        ("**Answer:** B", "B"),
        ("The answer is:\n\n**E**", "E"),
        ("The answer is (A)? No: the answer is (D).", "D"),
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{(C)}}", "C"),
        ("#### D", "D"),
        ("A", "A"),
        ("A)", "A"),
        ("(A)", "A"),
        ("A.", "A"),
        ("A) 24 apples", "A"),
        ("A: 24", "A"),
        ("So 24 apples.\nB", "B"),
        ("A train leaves at 9.", INVALID),
        ("Absolutely", INVALID),
        ("The answer is Brown.", INVALID),
        ("The answer is a car.", INVALID),
        ("Answer: A bag holds 5", INVALID),
        ("Answer:\nA bag holds 5", INVALID),
        ('The answer is "A bag".', INVALID),
        ("The answer is A-frame", INVALID),
        ("The answer is A's", INVALID),
        ("The answer is $C = 12$", INVALID),
        ("To answer A we need 3", INVALID),
        ("The incorrect option is C", INVALID),
        ("The correct option is not C.", INVALID),
        ("Answer: A, B", INVALID),
        ("Answer: A, and B", INVALID),
        ("Answer: (A), (B)", INVALID),
        ("Answer: A & B", INVALID),
        ("The answer is $A$ or $B$.", INVALID),
        ("The answer is not A.", INVALID),
        ("The answer is A or B.", INVALID),
        ("The answer is (A) or (B).", INVALID),
        ("A or B", INVALID),
        ("(C) is wrong.", INVALID),
        ("(C) or (D).", INVALID),
        ("The answer is F.", INVALID),
        ("", INVALID),
    ],
)
def test_letter(text, answer):
    assert letter(text) == answer


def test_letter_misreads_no_solution_of_aqua_rat_that_people_wrote(shared_data):
    lines = (shared_data / "eval" / "aqua_rat.test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = [(letter(row["rationale"]), row["correct"]) for row in rows]
    assert [pair for pair in found if pair[0] not in (INVALID, pair[1])] == []
    assert sum(said == right for said, right in found) == 204  # of 254; the others end in no letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" garden.", "garden"),
        ("Garden", "garden"),
        ("the garden, I think", "garden"),
        ('"garden"', "garden"),
        ("garden\nThe cup is in the attic", "garden"),
        ("incorrect", "incorrect"),
        ("not correct", INVALID),
        ("garden shed", INVALID),
        ("the", "the"),
        ("", INVALID),
        ("...", INVALID),
    ],
)
def test_word(text, answer):
    assert word(text) == answer


def test_incorrect_is_not_correct():
    assert word("incorrect") != "correct"
    assert word("Unhappy") != "happy"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 07314.", "07314"),
        ("is 07314, and 55555", "07314"),
        ("073145", "073145"),
        ("07,314", "07314"),
        ("7314", "7314"),
        ("0 7 3 1 4", "0"),
        ("no key", INVALID),
    ],
)
def test_key(text, answer):
    assert key(text) == answer


@pytest.mark.parametrize("name", PARSERS)
def test_every_parser_has_a_twin_for_the_harness(name):
    texts = ["The answer is (B).", "#### 1,000", "07314", "garden", ""]
    twin = getattr(parsers, f"{name}_filter")
    assert twin([texts, texts[:1]], [{}, {}]) == [[PARSERS[name](text) for text in texts], [PARSERS[name](texts[0])]]


@pytest.mark.parametrize("name", PARSERS)
def test_long_nonsense_is_read_in_no_time_worth_noting(name):
    blanks = ("answer" + " " * 20000, "answer" + "* " * 10000, "answer is" + "\n" * 20000, "answer to" + " is" * 6000)
    marks = ("answer is " * 3000, "answer to " * 3000, "answer\n" * 3000, "$ " * 10000, "\\( " * 7000, "\n#" * 9000)
    others = ("9" * 20000, "(A" * 10000, "\\boxed{" * 3000, "1," * 10000, "#" * 20000, "####" + "1=" * 8000)
    for text in (*blanks, *marks, *others):
        assert isinstance(PARSERS[name](text), str)


@pytest.mark.backend
def test_number_agrees_with_the_harness_on_plainly_marked_answers(shared_data):
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    lines = (shared_data / "eval" / "gsm8k.test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [[json.loads(line)["answer"]] for line in lines]
    theirs = extraction.RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)").apply(answers, [{}] * len(answers))
    assert [number(answer) for (answer,) in answers] == [re.sub(",", "", found) for (found,) in theirs]
