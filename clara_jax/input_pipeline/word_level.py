"""A tokenizer with a token for every word, for small models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast
from clara_jax.input_pipeline.prompts import PARAPHRASE_INSTRUCTIONS

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"

# As short as possible: a small model's time goes into tokens. The system message holds nothing that the model could not
# learn from the user's message, and bos alone divides the two turns.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + message['content'] + bos_token }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


def word_level_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer that knows the words and punctuation of some texts, and those of the package's prompts.

    Words are runs of letters, digits and "_"; any other character but white space is a separate token. What is not
    known becomes "<unk>". Decoding puts a space before every word but the first and none before punctuation, so a text
    comes back up to its white space.

    Args:
      texts: training texts, or words; ids follow the order in which words first appear.
    """
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("isolated")])
    prompts = [text.replace("{docs}", " ") for text in PARAPHRASE_INSTRUCTIONS]
    words = dict.fromkeys([UNKNOWN, BOS, EOS])
    for text in ("Background: Question: Answer:", *prompts, *texts):
        words |= dict.fromkeys(word for word, _ in split.pre_tokenize_str(text))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex(r"^(?=\w)"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
