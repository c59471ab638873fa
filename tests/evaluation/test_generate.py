import pytest
import torch

from mvquant.evaluation.batches import Engine, encode
from mvquant.evaluation.generate import Stop, end_tokens, generate, generated_rows
from mvquant.evaluation.task_file import GenerationKwargs
from mvquant.evaluation.tasks import Item
from tests.evaluation.examples import EOS, AnsweringModel, tiny_tokenizer
from tests.tiny_models import tiny_model

LIMITS = GenerationKwargs(max_gen_toks=12, until=("\n",))


def ask(answers, wanted, limits=LIMITS, batch_size=4):
    """Rows of a model that answers exactly so."""
    tokenizer = tiny_tokenizer()
    engine = Engine(AnsweringModel(answers, tokenizer), tokenizer, batch_size)
    items = [Item(id=str(i), prompt=prompt, answer=right) for i, (prompt, right) in enumerate(wanted.items())]
    return dict(generated_rows(engine, limits, items))


@pytest.mark.parametrize(
    ("said", "answer", "correct"),
    [
        pytest.param(" attic\n", "attic", True, id="right"),
        pytest.param(" attic", "attic", True, id="ended-by-the-model"),
        pytest.param(" \t attic \nMore", "attic", True, id="white-space-around"),
        pytest.param(" incorrect\n", "correct", False, id="substring"),
        pytest.param(" correct\n", "incorrect", False, id="superstring"),
        pytest.param(" attic.\n", "attic", False, id="punctuation"),
        pytest.param(" the attic\n", "attic", False, id="text-before"),
        pytest.param(" Attic\n", "attic", False, id="case"),
        pytest.param("\nattic\n", "attic", False, id="answer-after-the-stop"),
        pytest.param(" 12\n", "1", False, id="longer-number"),
        pytest.param(" attics and", "attics a", False, id="longer"),
    ],
)
def test_only_the_whole_answer_counts(said, answer, correct):
    (row,) = ask({"Where?": said}, {"Where?": answer}).values()
    assert row.correct is correct
    assert row.prediction == said.split("\n")[0].strip()


def test_the_length_limit_cuts_the_answer():
    limits = GenerationKwargs(max_gen_toks=3, until=("\n",))
    (row,) = ask({"?": " attic\n"}, {"?": "attic"}, limits).values()
    assert (row.prediction, row.correct) == ("at", False)


def test_the_first_of_several_stop_strings_counts_and_may_span_tokens():
    limits = GenerationKwargs(max_gen_toks=12, until=("END", "\n"))
    (row,) = ask({"?": " é\u2028bENDc\nd"}, {"?": "é\u2028b"}, limits).values()
    assert (row.prediction, row.correct) == ("é\u2028b", True)


def test_rows_of_unequal_length_end_on_their_own_and_keep_their_place():
    answers = {"a?": " x\n", "a long question?": " yes it is\n", "middle?": " no", "b?": " yy\n"}
    rows = ask(answers, dict.fromkeys(answers, "no"), batch_size=3)
    assert [rows[i].prediction for i in range(4)] == ["x", "yes it is", "no", "yy"]
    assert [rows[i].id for i in range(4)] == ["0", "1", "2", "3"]


def test_an_item_that_does_not_fit_is_not_cut():
    long = "x" * 60
    rows = ask({long: " a\n", "y": " a\n"}, {long: "a", "y": "a"})
    assert rows[0] is None
    assert rows[1].correct


def test_an_ordinary_token_can_end_an_answer_without_being_part_of_it():
    tokenizer = tiny_tokenizer()
    *answer, end = tokenizer("attic;", add_special_tokens=False)["input_ids"]
    stop = Stop(tokenizer, ("\n",), frozenset({end}), max_tokens=10)
    assert [stop.reached([*answer, end][: i + 1]) for i in range(6)] == [False] * 5 + [True]
    assert stop.text([*answer, end]) == stop.text(answer) == "attic"


def test_end_tokens_come_from_both_sides():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.generation_config.eos_token_id = [7, 8]
    assert end_tokens(model, tokenizer) == {7, 8, EOS}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "opt", "gpt2"])
def test_batches_answer_as_transformers_answers_one_prompt(family):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    prompts = encode(tokenizer, ["What?", "Where is Tom now, and who asks?", "a", "Who knows?", "Tell me."])
    stop = Stop(tokenizer, (), frozenset({EOS}), max_tokens=7)
    for batch_size in (1, 4):
        answers = dict(generate(model, prompts, stop, batch_size))
        for index, prompt in enumerate(prompts):
            ids = torch.tensor([prompt])
            whole = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=7,
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=0,
            )
            assert answers[index] == whole[0, len(prompt) :].tolist()


def test_an_answer_that_never_ends_is_cut_and_told_from_one_that_ends():
    limits = GenerationKwargs(max_gen_toks=5, until="\n")
    rows = ask({"a?": " abcdefghij", "b?": " ab\n", "c?": " abc\n"}, {"a?": "abcd", "b?": "ab", "c?": "abc"}, limits)
    assert [(rows[i].tokens, rows[i].ended) for i in range(3)] == [(5, False), (4, True), (5, True)]
    assert rows[0].correct  # what was said up to the limit counts, and that it was cut is told


def test_what_is_parsed_counts_and_the_whole_text_is_kept():
    engine = Engine(AnsweringModel({"1+1?": " It is 2."}, tiny_tokenizer()), tiny_tokenizer(), 1)
    limits = GenerationKwargs(max_gen_toks=20, until="\n")
    items = [Item(id="0", prompt="1+1?", answer="2")]
    ((_, row),) = generated_rows(engine, limits, items, parse=lambda text: text.split()[-1].strip("."))
    assert (row.prediction, row.correct, row.text) == ("2", True, " It is 2.")
    ((_, row),) = generated_rows(engine, limits, items)
    assert (row.prediction, row.correct, row.text) == ("It is 2.", False, None)
