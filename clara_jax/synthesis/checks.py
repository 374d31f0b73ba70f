"""Checks of questions, answers and paraphrases that need no model.

Checks look for plain errors; a model judges afterwards whether a pair is right. They read any language by its words
(characters, where a script has no spaces), and English better: there numbers may be words, and names are recognized
by their capitals (`clara_jax.text.facts`). In other languages numbers are digits.

Thresholds are set on real text. *Pairs*: the 7,861 of the published sample of CLaRa's data, whose answers a model
wrote, often as sentences, and some of which are wrong. *Rewritings*: the development files of WikiSplit (500 sentences
split in two) and OneStopEnglish (163 simplified paragraphs, often shorter).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence, Set
from decimal import Decimal
from typing import NamedTuple

from clara_jax.text import facts
from clara_jax.text.words import in_a_row, without_spaces, words

STEM = 5  # letters of a word that are compared: endings differ between a document and texts about it
RUN = 4  # consecutive words that a copy has in common with its original
NAMED = 8  # words or numbers that a problem lists at most
IN_WORDS = 12  # numbers up to this one, and months, are often words
SCALES = tuple(Decimal(1000) ** power for power in range(-3, 4))

_RESIDUE = re.compile(
    r"""[{}`]|</?\w+>|<\|\w+\|>|\[/?INST\]|\\[nt"]|\bjson\b"""
    r"""|\b(?:question|answer|paraphrase|judge?ment|verdict|frage|antwort)[ _]?\d*["'*]*\s*[:：]"""
    r"""|[问問答][题題案]?\d*\s*[:：]"""
    r"""|^\W*(?:sure|certainly|of course|okay)\s*[,!]|^\W*here (?:is|are)\b.*:\s*""",
    re.IGNORECASE | re.MULTILINE,
)
_QUESTION_MARK = re.compile(r"[?？؟;\u037e՞፧⁇¿]")
# Without a question mark: words that ask, wherever they stand, and verbs that begin a request.
_ASKS = frozenset(
    """who whom whose what which when where why how please bitte
    wer wen wem wessen welche welcher welches welchem welchen wann wo woher wohin warum wieso
    qui que quoi quel quelle quels quelles quand où pourquoi comment combien
    quién qué cuál cuáles cuándo dónde cómo cuánto cuántos chi cosa quale quali quando dove perché quanti
    quem qual quais onde quantos кто что какой какая какое какие когда где почему как сколько
    من ما ماذا متى أين لماذا كيف كم أي कौन क्या कब कहाँ क्यों कैसे कितने""".split()
)
_TELLS = frozenset(
    """name list state give identify describe explain mention tell nenne nennen beschreibe beschreiben erkläre
    citez nommez donnez décrivez expliquez nombra menciona describe explica elenca descrivi spiega
    cite liste descreva explique назовите опишите объясните اذكر""".split()
)
_ASKS_WITHOUT_SPACES = re.compile(
    "[谁誰哪几幾吗嗎呢何请請]|什么|什麼|多少|怎|列出|说出|か。?$|どこ|いつ|なぜ|どう|どの|ใคร|อะไร|ไหน|เมื่อ|ทำไม|อย่างไร|กี่"
)
YES_NO = re.compile(
    r"(?:yes|no|ja|nein|nee|nej|oui|non|sí|sì|sim|não|да|нет|tak|nie|evet|hayır|نعم|لا|हाँ|नहीं|是|是的|不是|否|对|不对|はい|いいえ|예|네|아니요)"
    r"""\s*(?:$|[,;:!。，、！—"»”]|\.(?!\s*\d)|\s[-–])""",  # not "No. 5", not "No Man's Land"
    re.IGNORECASE,
)
_OR = frozenset("or oder ou o или または 또는".split())
_OR_WITHOUT_SPACES = re.compile("或|还是|還是|または|それとも|หรือ")
_AND = frozenset("and und et y e и og och en i ve و और".split())
_AND_WITHOUT_SPACES = re.compile("[和与與及跟、]|と|และ")
_REFUSAL = re.compile(
    r"""\b(?:document|passage|text|article|context|excerpt)\b[^.]*(?:\bnot|n['’]t)\s(?:\w+ly\s)?
        (?:mention|state|specif|provide|contain|name|say|give|include|list|explain|describe|identif|indicate)
    |\bnot\s(?:\w+ly\s)?(?:mentioned|stated|specified|provided|contained|named|given|included|listed|explained
        |described|identified|indicated|found|clear)\s(?:in|by|from)\s(?:the|this)\s
        (?:\w+\s)?(?:document|passage|text|article|context|excerpt)
    |^\W*(?:(?:it|this|that)\sis\s)?(?:not\s(?:\w+ly\s)?(?:mentioned|stated|specified|provided|given|known|available)
        |unknown|none|n/a|no\sinformation(?:\savailable)?|cannot\sbe\s(?:answered|determined))\W*$
    |\bas\san\sai\b|^\W*i(?:['’]m|\sam)\s(?:sorry|unable)|^\W*i\s(?:cannot|can['’]t|could\snot)
    |\b(?:dokument|text|abschnitt)\b[^.]*\b(?:nicht|keine?n?)\b[^.]*(?:erwähn|genannt|nennt|angegeben|enth[aä]lt|hervor)
    |\b(?:nicht|keine)\b[^.]*\bim\s(?:dokument|text|abschnitt)\b
    |\b(?:document|texte|passage)\sne\s[^.]*\bpas\b|\b(?:documento|texto)\sno\s(?:menciona|especifica|indica|contiene)
    |(?:文档|文檔|文章|文本|文中|段落|资料)[^。]*(?:没有|沒有|未)[^。]*(?:提|说明|給出|给出|包含|列出)|^\W*(?:未提及|无法回答|未知)\W*$""",
    re.IGNORECASE | re.VERBOSE,
)
_DIGITS = re.compile(r"(?<!\w)\d{1,3}(?:[.,'’\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+")
_SHORT_SCALE = re.compile(r"\d\s?(?:k|m|mn|bn|tn)\b", re.IGNORECASE)  # £5bn: to `facts` it is 5
_DOT_WITHIN_NAME = re.compile(r"(?<=\w)\.")
# What the first words of an English question ask for.
_PREPOSITIONS = (
    r"^\W*(?:(?:in|on|at|by|since|until|from|during|for|to|about|around|over|under|above|within|with|of|after|before|up"
    r"|than|more|less)\s)*"
)
_ASKS_QUANTITY = re.compile(
    rf"{_PREPOSITIONS}(?:(?:what|which)\s(?:year|date|number|percentage|age|century|decade)\b"
    r"|how\s(?:many|tall|old|high|deep|wide|heavy|long|far)\b"
    r"|when\s(?:did|was|were|is|are|does|do|will|had|has|have)\b)",  # not "When rocks melt, what ..."
    re.IGNORECASE,
)
_ASKS_NO_QUANTITY = re.compile(
    rf"{_PREPOSITIONS}(?:who|whom|whose|where|why)\b(?!.*\b(?:when|rank(?:s|ed)?|place|year|many|percent|proportion)\b)",
    re.IGNORECASE,
)
_QUANTITY_WORDS = frozenset(
    """once twice thrice half halves third thirds quarter quarters dozen dozens couple pair several hundreds thousands
    millions billions many few most all none majority minority some both single double triple no zero every daily weekly
    monthly yearly annually significant larger smaller
    before after prior during until till since while when as at if upon under following second seconds minute minutes
    hour hours day days week weeks month months year years decade decades century centuries age ages spring summer
    autumn fall winter january february march april may june july august september october november december monday
    tuesday wednesday thursday friday saturday sunday morning noon afternoon evening night midnight dawn dusk today
    yesterday tomorrow now early late mid middle beginning end era period war reign time life always never permanently
    indefinitely forever""".split()
)
_NUMBER = re.compile(r"\d+(?:st|nd|rd|th|s)?")


class Problem(NamedTuple):
    """The reason why a pair or paraphrase is dropped.

    Attributes:
      kind: in snake_case, the same for all problems of a kind: statistics count by it.
      text: one line that describes the problem.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class CheckLimits:
    """The thresholds of the checks; lengths in words, or characters where a script has no spaces.

    Attributes:
      question_words: shortest and longest question. The pairs have 4 to 31.
      answer_words: longest answer. The pairs' longest has 76, 99 of 100 have at most 35.
      support: share of an answer's new words, by length, that the document has. At 0.7 this check and that of numbers
        refuse 2.7% of the pairs, and all but 0.5% of answers given for those of another document. Where one new
        capitalized word of a right answer is exchanged, 30% are taken; at 0.6 they were 42% (1.9% of the pairs
        refused), at 0.8 18% (4.2%).
      paraphrase_ratio: shortest and longest paraphrase, in lengths of the document. 95% of OneStopEnglish and all of
        WikiSplit are not shorter, nor are any longer.
      related: share of a paraphrase's words, by length, that the document has. Of 4,712 rewritings (with some of the
        training files) the least is 0.46; of WikiSplit's compared with other texts, the greatest is 0.36.
      copied: share of a paraphrase's runs of four words that the document has, from which on it is a copy. A document
        of 24 words or more in which one word is exchanged has more; so have 20% of OneStopEnglish and 29% of
        WikiSplit, in which little is changed.
      names_kept: share of the document's names that a paraphrase must have. 94% of WikiSplit have them; most of the
        others do lack a name.
    """

    question_words: tuple[int, int] = (2, 60)
    answer_words: int = 80
    support: float = 0.7
    paraphrase_ratio: tuple[float, float] = (0.6, 1.7)
    related: float = 0.4
    copied: float = 0.8
    names_kept: float = 0.75


@dataclasses.dataclass(frozen=True)
class DocumentText:
    """A document with the features that the checks compare, each computed once.

    Attributes:
      text: the document.
      language: ISO 639-1; numbers in words and names are recognized in "en".
    """

    text: str
    language: str = "en"

    @functools.cached_property
    def words(self) -> list[str]:
        """The document's words without case."""
        return words(self.text)

    @functools.cached_property
    def in_a_row(self) -> str:
        """The words as one string for phrase search, see `clara_jax.text.words.in_a_row`."""
        return in_a_row(self.words)

    @functools.cached_property
    def terms(self) -> frozenset[str]:
        """The stems that words are compared by."""
        return frozenset(_terms(self.words))

    @functools.cached_property
    def numbers(self) -> set[Decimal]:
        """The document's numbers, doubtful ones included."""
        return self.numbers_of(self.text, doubtful=True)

    @functools.cached_property
    def names(self) -> set[str]:
        """The document's names; empty where it is not English."""
        return facts.names(self.text) if self.language == "en" else set()

    def numbers_of(self, text: str, doubtful: bool = False) -> set[Decimal]:
        """Return the numbers of a text in the document's language.

        Args:
          text: any text in that language.
          doubtful: include "one", "first" and "second" where they stand alone.
        """
        if self.language == "en":
            return facts.numbers(text, doubtful)
        return {Decimal(re.sub(r"\D", "", found)) for found in _DIGITS.findall(text)}


def question_problem(document: DocumentText, question: str, limits: CheckLimits) -> Problem | None:
    """Return the first problem of a question, None where it passes.

    Kinds: "empty_question", "short_question", "long_question", "question_residue" (of a prompt or of JSON that is not
    in the document), "no_question".

    A question has a question mark, an interrogative word, or begins like "Name the ...". In languages whose words are
    not listed here it needs the mark.
    """
    found = words(question)
    shortest, longest = limits.question_words
    if not found:
        return Problem("empty_question", "the question has no word")
    if len(found) < shortest:
        return Problem("short_question", f"{len(found)} words, fewer than {shortest}: {_line(question)}")
    if len(found) > longest:
        return Problem("long_question", f"{len(found)} words, more than {longest}")
    if residue := _residue(document, question):
        return Problem("question_residue", f"{residue!r} in {_line(question)}")
    asks = not (_ASKS.isdisjoint(found) and _TELLS.isdisjoint(found[:1]))
    if not (asks or _QUESTION_MARK.search(question) or _ASKS_WITHOUT_SPACES.search(question)):
        return Problem("no_question", f"nothing is asked: {_line(question)}")
    return None


def pair_problem(
    document: DocumentText, question: str, answer: str, limits: CheckLimits, complex: bool = False
) -> Problem | None:
    """Return the first problem of an answer, None where it passes.

    Kinds: "empty_answer", "long_answer", "answer_residue", "yes_no", "answer_in_question", "wrong_kind" (see
    `missed_answer_type`), "refusal", "unknown_number", "unsupported_answer".

    An answer that is a phrase of the document is supported. Otherwise the document must have its numbers, and the
    share `CheckLimits.support` of its words that are not in the question.

    Args:
      document: what the answer must follow from.
      question: one that `question_problem` lets pass.
      answer: its answer.
      limits: the thresholds.
      complex: whether the question combines facts: it may not be answered by yes or no, but by one of the things that
        it joins.
    """
    found, asked = words(answer), words(question)
    if not found:
        return Problem("empty_answer", "the answer has no word")
    if len(found) > limits.answer_words:
        return Problem("long_answer", f"{len(found)} words, more than {limits.answer_words}")
    if residue := _residue(document, answer):
        return Problem("answer_residue", f"{residue!r} in {_line(answer)}")
    if decided := YES_NO.match(answer.strip()):
        if complex:
            return Problem("yes_no", f"a complex question is answered by {_line(decided[0])}")
        answer = answer.strip()[decided.end() :]
        found = words(answer)
    elif _says(asked, found) and not _offers(question, asked, complex):
        return Problem("answer_in_question", f"the question says it: {_line(answer)}")
    if document.language == "en" and found:
        wanted = missed_answer_type(question, found, bool(document.numbers_of(answer, doubtful=True)))
        if wanted and not _REFUSAL.search(answer):
            return Problem("wrong_kind", f"the question asks for {wanted}: {_line(answer)}")
    if in_a_row(found) in document.in_a_row or not found:
        return None
    if _REFUSAL.search(answer):
        return Problem("refusal", _line(answer))
    if unknown := _lacking(document, document.numbers, document.numbers_of(answer), answer):
        return Problem("unknown_number", f"the document has not {_listed(unknown)}")
    numerals = [word for word in found if document.numbers_of(word, doubtful=True)]
    known = document.terms.union(_terms(numerals))  # the document has their values
    terms, given = _terms(found), frozenset(_terms(asked))
    new = [term for term in terms if term not in given] or terms
    if _share(new, known) < limits.support:
        written = {word[:STEM]: word for word in found}
        lacking = dict.fromkeys(written.get(term, term) for term in new if term not in known)
        return Problem("unsupported_answer", f"the document has not {_listed(lacking)}")
    return None


def missed_answer_type(question: str, answer: Iterable[str], numbers: bool) -> str | None:
    """Return the type of answer that a question asks for, in a few words, where the answer is not of it; else None.

    Types are a quantity or time, and a person or place; the question's first words ask for one. Set on the published
    sample of CLaRa's data: of its 7,861 pairs none is refused; of the answers to other questions on the same document,
    which the document supports as well, 6%, and 42% where the question asks for a quantity or a time. Of the 28,572
    pairs that people wrote for SQuAD's training set it refuses 0.1%.

    Args:
      question: English text.
      answer: words of the answer, see `clara_jax.text.words`.
      numbers: whether the answer has numbers, in digits or words.
    """
    if _ASKS_QUANTITY.match(question) and not numbers and _QUANTITY_WORDS.isdisjoint(answer):
        return "a quantity or a time"
    if _ASKS_NO_QUANTITY.match(question) and all(map(_NUMBER.fullmatch, answer)):
        return "more than a number"
    return None


def paraphrase_problem(document: DocumentText, paraphrase: str, limits: CheckLimits) -> Problem | None:
    """Return the first problem of a paraphrase, None where it passes.

    Kinds: "empty_paraphrase", "short_paraphrase", "long_paraphrase", "paraphrase_residue", "copy",
    "unrelated_paraphrase", "lost_number", "added_number", "lost_names".

    Every number must be kept and none be added, dates among them; of names, which in English are recognized by
    capitals, a share. Outside English small numbers are ignored: they may be words.
    """
    found = words(paraphrase)
    if not found:
        return Problem("empty_paraphrase", "the paraphrase has no word")
    ratio = len(found) / max(1, len(document.words))
    shortest, longest = limits.paraphrase_ratio
    if ratio < shortest:
        return Problem("short_paraphrase", f"{ratio:.2f} times the document's length, less than {shortest}")
    if ratio > longest:
        return Problem("long_paraphrase", f"{ratio:.2f} times the document's length, more than {longest}")
    if residue := _residue(document, paraphrase):
        return Problem("paraphrase_residue", f"{residue!r} in it")
    copied = _copied(document.words, found)
    if copied >= limits.copied:
        return Problem("copy", f"{copied:.0%} of its runs of {RUN} words stand in the document")
    related = _share(_terms(found), document.terms)
    if related < limits.related:
        return Problem("unrelated_paraphrase", f"the document has {related:.0%} of its words")
    stated, restated = document.numbers_of(document.text), document.numbers_of(paraphrase, doubtful=True)
    if lost := _lacking(document, restated, stated, paraphrase):
        return Problem("lost_number", f"the paraphrase has not {_listed(lost)}")
    if added := _lacking(document, document.numbers, document.numbers_of(paraphrase), paraphrase):
        return Problem("added_number", f"the document has not {_listed(added)}")
    undotted = in_a_row(words(_DOT_WITHIN_NAME.sub("", paraphrase)))  # U.S. is the name "us"
    missing = sorted(name for name in document.names if in_a_row(words(name)) not in undotted)
    if missing and 1 - len(missing) / len(document.names) < limits.names_kept:
        return Problem("lost_names", f"the paraphrase has not {_listed(missing)}")
    return None


def _terms(found: Sequence[str]) -> list[str]:
    """Return the terms by which words are compared.

    These are the beginnings of words; pairs of characters where a script has no spaces, since single characters
    occur in every text.
    """
    terms = []
    for word, following in itertools.zip_longest(found, found[1:], fillvalue=""):
        if not without_spaces(word):
            terms.append(word if word[0].isdigit() else word[:STEM])
        elif without_spaces(following):
            terms.append(word + following)
    return terms or list(found)


def _share(terms: Sequence[str], known: Set[str]) -> float:
    """Return the share of terms that are known, weighted by length: long terms carry more information."""
    return sum(len(term) for term in terms if term in known) / sum(map(len, terms))


def _lacking(document: DocumentText, among: Set[Decimal], wanted: Set[Decimal], text: str) -> list[Decimal]:
    """Return the numbers that are wanted and not among others, sorted.

    Args:
      document: the text that one of the two sets is from.
      among: the numbers that are there.
      wanted: the numbers that are looked for.
      text: the text that the other set is from.
    """
    # Where words cannot be read, small numbers may be among them.
    wanted = {number for number in wanted if document.language == "en" or number > IN_WORDS}
    if _SHORT_SCALE.search(document.text) or _SHORT_SCALE.search(text):
        among = {number * scale for number in among for scale in SCALES}
    return sorted(wanted - among)


def _offers(question: str, asked: Sequence[str], complex: bool) -> bool:
    """Return whether a question names the answers from which one is to be chosen.

    Args:
      question: the text.
      asked: its words.
      complex: whether it may compare things joined by "and", as in "Which of the lakes Maron and Sella is deeper?"
    """
    offered = not _OR.isdisjoint(asked) or _OR_WITHOUT_SPACES.search(question)
    compared = complex and (not _AND.isdisjoint(asked) or _AND_WITHOUT_SPACES.search(question))
    return bool(offered or compared)


def _says(asked: Sequence[str], found: Sequence[str]) -> bool:
    """Return whether all words of an answer are in the question; characters of scripts without spaces, in sequence."""
    if any(map(without_spaces, found)):
        return in_a_row(found) in in_a_row(asked)
    return set(asked).issuperset(found)


def _copied(original: Sequence[str], found: Sequence[str]) -> float:
    """Return the share of runs of words that are in the original."""
    run = min(RUN, len(found))
    original_runs, runs = (
        {tuple(text[start : start + run]) for start in range(len(text) - run + 1)} for text in (original, found)
    )
    return len(original_runs & runs) / len(runs)


def _residue(document: DocumentText, text: str) -> str | None:
    """Return the first trace of a prompt or of JSON in a text that the document, which may be about code, lacks."""
    marks = (match[0] for match in _RESIDUE.finditer(text))
    return next((mark for mark in marks if mark.strip() not in document.text), None)


def _listed(found: Iterable[str | Decimal]) -> str:
    listed = [f"{each.normalize():f}" if isinstance(each, Decimal) else each for each in found]
    return ", ".join(listed[:NAMED]) + ", ..." * (len(listed) > NAMED)


def _line(text: str) -> str:
    """Return a text in one line, shortened and quoted."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 120 else line[:117] + "...")
