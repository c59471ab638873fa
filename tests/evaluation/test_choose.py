import pytest
import torch

from mvquant.evaluation.batches import Engine
from mvquant.evaluation.choose import Continuation, chosen_rows, encode_continuations, log_likelihoods
from mvquant.evaluation.tasks import Item
from tests.evaluation.examples import BOS, tiny_tokenizer
from tests.tiny_models import tiny_model


def tokens(tokenizer, *names):
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


def test_the_continuation_owns_the_space():
    tokenizer = tiny_tokenizer(merges=[("Ġ", "y")])
    for prompt, continuation in (("a", " y"), ("a ", "y")):
        (found,) = encode_continuations(tokenizer, [(prompt, continuation)])
        assert found == Continuation([BOS, *tokens(tokenizer, "a")], tokens(tokenizer, "Ġy"))


def test_a_token_across_the_border_is_kept_whole():
    tokenizer = tiny_tokenizer(merges=[("a", "b")])
    (longer,) = encode_continuations(tokenizer, [("xa", "bc")])
    assert longer == Continuation([BOS, *tokens(tokenizer, "x", "ab")], tokens(tokenizer, "c"))
    (melted,) = encode_continuations(tokenizer, [("xa", "b")])
    assert melted == Continuation([BOS, *tokens(tokenizer, "x", "a")], tokens(tokenizer, "b"))


def by_hand(model, tokenizer, prompt, continuation):
    """One unpadded forward per choice, one token at a time."""
    ids = tokenizer(prompt + continuation)["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    total = 0.0
    with torch.inference_mode():
        for place in range(start, len(ids)):
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
            total += (logits[ids[place]] - logits.exp().sum().log()).item()
    return total


ITEMS = [
    Item(id="short", prompt="Is Rome in Italy?", answer="yes", choices=("yes", "no")),
    Item(id="long", prompt="A far longer prompt that needs no padding. Is it?", answer="b", choices=("a", "b")),
    Item(id="unequal", prompt="Where?", answer="in the garden", choices=("attic", "in the garden", "a")),
]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_equal_those_computed_by_hand(family, batch_size):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    rows = dict(chosen_rows(Engine(model, tokenizer, batch_size), " ", ITEMS))
    for index, item in enumerate(ITEMS):
        expected = [by_hand(model, tokenizer, item.prompt, f" {choice}") for choice in item.choices]
        assert rows[index].log_likelihoods == pytest.approx(expected, abs=2e-3)
        assert rows[index].prediction == item.choices[expected.index(max(expected))]
        assert rows[index].correct == (rows[index].prediction == item.answer)
        assert rows[index].id == item.id


def test_choices_of_one_token_share_one_row():
    model, calls = tiny_model("llama"), []
    model.register_forward_pre_hook(
        lambda _module, _args, arguments: calls.append(arguments["input_ids"].shape), with_kwargs=True
    )
    shared = [Continuation([1, 5, 6], [token]) for token in (7, 8, 9)]
    scores = dict(log_likelihoods(model, shared, batch_size=2))
    assert sorted(scores) == [0, 1, 2]
    assert calls == [(1, 3)]


def test_equal_scores_go_to_the_first_choice():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    ((_, row),) = chosen_rows(Engine(model, tokenizer, 1), " ", ITEMS[:1])
    assert row.prediction == "no"  # fewer tokens, all equally likely
    ((_, row),) = chosen_rows(Engine(model, tokenizer, 1), " ", ITEMS[1:2])
    assert row.prediction == "a"


def test_an_item_with_one_choice_too_long_is_not_scored():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=24)
    items = [Item(id="x", prompt="Where is it?", answer="a", choices=("a", "in the old garden")), ITEMS[0]]
    rows = dict(chosen_rows(Engine(model, tokenizer, 4), " ", items))
    assert rows[0] is None
    assert rows[1].log_likelihoods
