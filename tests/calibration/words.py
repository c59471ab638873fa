"""A tokenizer that can be followed by eye: one token per word."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS = 0, 1
WORDS = 500
MARKS = ("<system>", "<user>", "<assistant>", "<end>")
CHAT = {mark: number + WORDS + 2 for number, mark in enumerate(MARKS)}
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
)


def chat_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """The same with a chat template: `<user> w1 <end> <assistant> w2 <end>`, after `<s>`; no tools."""
    tokenizer = word_tokenizer(bos=bos)
    tokenizer.chat_template = TEMPLATE if bos else TEMPLATE.removeprefix("{{ bos_token }} ")
    return tokenizer


def word_tokenizer(*, bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token per word: `w7` is token 9."""
    vocabulary = {"<s>": BOS, "</s>": EOS, **{f"w{number}": number + 2 for number in range(WORDS)}, **CHAT}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names, **({"eos_token": "</s>"} if eos else {}))


def text(begin: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(begin, begin + count))


def tokens(begin: int, count: int) -> list[int]:
    return list(range(begin + 2, begin + 2 + count))
