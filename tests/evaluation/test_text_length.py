from mvquant.evaluation.text_length import count_tokens, count_words
from tests.evaluation.examples import tiny_tokenizer


def test_tokens_are_counted_without_special_ones():
    tokenizer = tiny_tokenizer([("a", "b")])
    count = count_tokens(lambda: tokenizer)
    assert [count(text) for text in ("", "c", "ab", "ab ab c")] == [0, 1, 1, 5]
    assert count("ab ab c") == len(tokenizer("ab ab c")["input_ids"]) - 1


def test_a_tokenizer_is_loaded_once_and_not_before_it_is_needed():
    loads = []
    count = count_tokens(lambda: loads.append(1) or tiny_tokenizer())
    assert loads == []
    assert count("ab") == count("cd") == 2
    assert loads == [1]


def test_words_are_words_digits_and_marks():
    assert [count_words(text) for text in ("", "a word", "it's 12.", "caf\u00e9\n")] == [0, 2, 6, 1]
