from hypothesis import given
from hypothesis import strategies as st

from mvquant.evaluation.text_quality import distinct_n, text_quality


def test_a_loop_is_not_distinct_and_a_new_word_each_time_is():
    assert distinct_n([[5] * 11]) == 1 / 10
    assert distinct_n([list(range(20))]) == 1.0
    assert distinct_n([[1, 2, 3], [1, 2, 3]]) == 0.5


def test_pairs_do_not_reach_from_one_text_into_the_next():
    assert distinct_n([[1], [2], []]) is None


@given(st.lists(st.lists(st.integers(0, 3), max_size=9), min_size=1, max_size=5))
def test_repeating_every_text_halves_what_is_distinct(texts):
    once, twice = distinct_n(texts), distinct_n(texts * 2)
    assert (once is None and twice is None) or once == 2 * twice


def test_texts_that_never_ended_are_counted():
    found = text_quality([[1, 2, 3, 4], [1, 2]], [False, True], limit=4)
    assert (found.texts, found.ended, found.mean_tokens, found.limit) == (2, 1, 3.0, 4)
