"""Chat templates of strangers: bounded, the same on every day, and learned from only where that is possible."""

import datetime
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.confined import Confined, ExceededError
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline import chat_templates
from clara_jax.input_pipeline.chat_templates import ChatTemplate, ChatTemplateError
from clara_jax.input_pipeline.prompts import Memory, Prompt
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.text.chunks import chunker_of
from clara_jax.text.documents import CorpusDocument
from tests.data import REFUSING_TEMPLATE, SYSTEM_TEMPLATE, tiny_tokenizer
from tests.tiny import CHAT_TEMPLATE, SPACED_TEMPLATE, tokenizer

LOOP = "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>' }}{% endfor %}"
START = "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
CLOCK = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}"
THINKS = LOOP + "{% if add_generation_prompt %}{{ '<s>assistant\\n<think>\\n' }}{% endif %}"
ENDLESS = LOOP.replace(" + '</s>'", "+ ('</s>' if m['role'] != 'assistant' else '')") + START
SYSTEMLESS = LOOP.replace("{{", "{% if m['role'] != 'system' %}{{").replace("}}", "}}{% endif %}") + START
PROMPT = Prompt("Be brief.", ("Docs: ", Memory(0), " Where?"), "Pier 4")


def made(template, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return ClaraTokenizer(tokenizer(template), 16, 4, **options), " ".join(str(line.message) for line in said)


def learned(clara, target):
    encoded = clara.encode_prompt(Prompt("Be brief.", ("Docs: ", Memory(0), " Where?"), target))
    return clara.decode([label for label in encoded.labels if label != -100], special=True)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LOOP + START, SYSTEM_TEMPLATE, REFUSING_TEMPLATE])
def test_what_most_templates_render_is_what_transformers_does(template):
    base = tiny_tokenizer(template)
    chats = [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": " a\n<é> "}]]
    chats.append([*chats[0], {"role": "assistant", "content": "Yes"}])
    for generate in (True, False):
        expected = [base.apply_chat_template(x, tokenize=False, add_generation_prompt=generate) for x in chats]
        assert ChatTemplate(base).render(chats, generate) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{% for i in range(3) %}{% continue %}{% endfor %}",
        "{{ messages | tojson }}{{ {'é': 1} | tojson(indent=2) }}{{ bos_token }}{{ tools is none }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}\n  {% if true %}\n x {% endif %}\n",
        "{%- macro m(x) %}{{ x }}{% endmacro -%} {{ m(messages[0]['content']) | trim | upper }}",
    ],
)
def test_the_environment_is_that_of_transformers(template):
    base, chat = tiny_tokenizer(template), [{"role": "user", "content": " Hi é "}]
    assert ChatTemplate(base).render([chat], True) == [base.apply_chat_template(chat, tokenize=False)]


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, SPACED_TEMPLATE, THINKS, ENDLESS, SYSTEMLESS, CLOCK + LOOP + START]
)
@settings(max_examples=10, deadline=None)
@given(target=st.text("aN4 Pé\n", min_size=1).filter(lambda text: text.strip() == text))
def test_all_of_an_answer_and_its_end_are_learned(template, target):
    clara, _ = made(template)
    assert learned(clara, target).strip() == f"{target}</s>"
    alone = clara.encode_prompt(Prompt(PROMPT.system, PROMPT.user))
    whole = clara.encode_prompt(Prompt(PROMPT.system, PROMPT.user, target))
    assert whole.ids[: len(alone.ids)] == alone.ids  # what is asked for is what was trained
    assert [label == -100 for label in whole.labels].count(True) == len(alone.ids)


@pytest.mark.parametrize(
    "template, said, fact",
    [
        (CHAT_TEMPLATE, "", ()),
        (SPACED_TEMPLATE, "prompts end with ' '", ("surplus  ",)),
        (THINKS, "prompts end with '<think>", ("surplus <think>\n",)),
        (ENDLESS, "no token ends its answers", ("end </s>",)),
        (SYSTEMLESS, "drops the system message", ("system joined",)),
        (CLOCK + LOOP + START, "", ("date 2024-07-26",)),
    ],
)
def test_what_is_handled_is_said_and_is_part_of_the_hash(template, said, fact):
    clara, warned = made(template)
    assert said in warned if said else not warned
    assert clara._turns.facts == fact
    assert "Be brief." in clara.render(PROMPT)


def test_the_day_does_not_matter(monkeypatch):
    def ids(day):
        class Day(datetime.datetime):
            @classmethod
            def now(cls, *_):
                return day

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day, raising=False)
        clara, _ = made(CLOCK + LOOP + START)
        return clara.encode_prompt(PROMPT).ids, clara.tokenizer_hash()

    assert ids(datetime.datetime(2026, 11, 30)) == ids(datetime.datetime(2026, 12, 1))


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[9].content.x }}", "fails"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ [1][5] + 'x' }}", "fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
        ("{% for", "fails"),
        ("{{ ''.__class__ }}{{ lipsum() }}", "fails"),
        ("{{ [1, 2] | random }}" + LOOP, "chance"),
        ("{{ raise_exception('never\nagain') }}", "never again"),
        ("Constant.", "leaves out the user"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "the assistant"),
        ("{{ messages | length }}" + LOOP + START, "otherwise once there is an answer"),
        (LOOP.replace("messages", "messages if m.role != 'system'") + "{{ messages[0].content }}" + START, "otherwise"),
        ("{{ '\\ud83d' }}" + LOOP + START, "surrogates not allowed"),
        ("{{ raise_exception }}" + LOOP + START, "an address"),
        ("{{ 'x %s' | format(messages[0].items) }}" + LOOP + START, "an address"),
        ("{" * 100_000, "fails"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "fails"),
    ],
)
def test_what_cannot_be_used_is_one_line(template, reason):
    with pytest.raises(ClaraError, match=reason) as caught:
        made(template)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_named_templates():
    base = tokenizer(CHAT_TEMPLATE)
    base.chat_template = {"tool_use": "x", "default": CHAT_TEMPLATE}
    assert ClaraTokenizer(base, 16, 4).render(PROMPT) == made(CHAT_TEMPLATE)[0].render(PROMPT)
    base.chat_template = {"tool_use": "x", "rag": "y"}
    with pytest.raises(ClaraError, match="'rag', 'tool_use'; name one of them"):
        ClaraTokenizer(base, 16, 4)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = 'a' * 2000000000 * 10 %}{{ x }}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%99999999999d' % 1 }}{{ 'x' | center(99999999999) }}",
        "{% if messages[0].content | length > 3 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}" + LOOP,
    ],
)
def test_time_and_memory_are_bounded(template, monkeypatch):
    monkeypatch.setattr(chat_templates, "SECONDS", 2.0)
    base, start = tiny_tokenizer(template), time.process_time()
    with pytest.raises(ClaraError, match="takes more than|fails"):
        ChatTemplate(base).render([[{"role": "user", "content": "Long enough"}]], True)
    assert time.process_time() - start < 2  # all of it is another process's
    fine = ChatTemplate(tiny_tokenizer(SYSTEM_TEMPLATE)).render([[{"role": "user", "content": "Hi"}]], True)
    assert "Hi" in fine[0]  # and the next one is served


def test_a_function_in_a_process_with_bounds():
    confined = Confined(2**28)
    assert confined.call("math:sqrt", [4], 5) == 2.0
    with pytest.raises(ExceededError, match="1 s"):
        confined.call("tests.input_pipeline.test_chat_templates:_spin", [], 1)
    with pytest.raises(ExceededError, match="256 MiB"):
        confined.call("builtins:bytearray", [2**31], 5)
    with pytest.raises(ClaraError, match="told"):
        confined.call("tests.input_pipeline.test_chat_templates:_refuse", [], 5)
    assert confined.call("math:sqrt", [9], 5) == 3.0
    confined._end()


def _spin():
    while True:
        pass


def _refuse():
    raise ClaraError("told")


@settings(max_examples=60, deadline=None)
@given(st.text("{}%ab'() +*|~.messages[0]contentforinrange\n", max_size=80))
def test_any_template_is_rendered_or_refused(source):
    try:
        ChatTemplate(tiny_tokenizer(source or "x")).render([[{"role": "user", "content": "Hi"}]], True)
    except ChatTemplateError as error:
        assert "\n" not in str(error)


def test_half_a_surrogate_pair_is_refused_wherever_text_comes_in():
    clara, _ = made(CHAT_TEMPLATE)
    half = "half \ud83d"
    for call in (
        lambda: clara.encode_documents([half]),
        lambda: chunker_of(clara)(CorpusDocument("d", "", half, "")),
        lambda: clara.cut_texts([half]),
        lambda: clara.is_cut(half),
        lambda: clara.encode_prompt(Prompt(half, ("x",))),
        lambda: clara.encode_prompt(Prompt("x", (half,))),
        lambda: clara.encode_prompt(Prompt("x", ("y",), half)),
    ):
        with pytest.raises(ClaraError, match="surrogate"):
            call()
