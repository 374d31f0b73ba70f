"""The JSON of requests and responses. Unknown fields are ignored, as OpenAI's clients send many without use here."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from clara_jax.rag_pipeline import CANDIDATES
from clara_jax.results import Hit
from clara_jax.retrieval.documents import LONGEST_ID

LONGEST_ANSWER, MOST_CHUNKS, LONGEST_QUESTION = 4096, 100, 20_000

Question = Annotated[str, Field(min_length=1, max_length=LONGEST_QUESTION)]
How = Literal["memory", "words", "both"]
Where = Annotated[
    str | None,
    Field(default=None, max_length=2000, description="a condition on the chunks, e.g. document = 'notes/a.md'"),
]
# Strict, as in the JSON schema: neither "5" nor true is a number.
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Count = Annotated[Integer, Field(ge=1, le=MOST_CHUNKS)]


class Sent(BaseModel):
    """A part of a request; a field that is null counts as absent, as with OpenAI."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        return (
            {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields
        )


class Part(Sent):
    """A piece of a message. There are no images, sounds and files."""

    type: Literal["text"]
    text: str


class Message(Sent):
    """A message of a chat; of a store the last one of the user is the question."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())


class StreamOptions(Sent):
    """Options of a streamed completion."""

    include_usage: StrictBool | None = False


class TextFormat(Sent):
    """The one format of answers."""

    type: Literal["text"]


# Further fields of OpenAI's and of other servers' chats that change an answer, each with the values that do not.
_CHANGES_ANSWERS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(["audio", "web_search_options"], ()),
    **dict.fromkeys(["guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"], ()),
    **dict.fromkeys(["grammar", "json_schema", "chat_template", "suffix"], ("", {})),
    **dict.fromkeys(["stop_token_ids", "bad_words", "allowed_token_ids"], ([],)),
    **dict.fromkeys(["ignore_eos", "echo", "use_beam_search", "continue_final_message"], (False,)),
    **dict.fromkeys(["min_tokens", "min_p", "mirostat"], (0,)),
    **dict.fromkeys(["best_of", "repetition_penalty", "repeat_penalty", "typical_p"], (1,)),
    "top_k": (0, -1),
}

Ending = Annotated[str, Field(min_length=1, max_length=500)]


class ChatRequest(Sent):
    """A request for a chat completion as OpenAI's.

    An option that would change the answer and is not supported here is refused, so that a client can leave it out.
    Tools that the model may call, and need not, are left alone: an answer that calls none is one of those asked for.
    Chat programs send theirs with every question.
    """

    messages: list[Message] = Field(min_length=1, max_length=1000)
    model: str | None = Field(default=None, description="any name: there is one model")
    max_completion_tokens: Integer | None = Field(default=None, ge=1, le=LONGEST_ANSWER)
    max_tokens: Integer | None = Field(default=None, ge=1, le=LONGEST_ANSWER, description="the older name")
    temperature: Number | None = Field(default=0.0, ge=0, le=2, description="0 takes the likeliest token")
    top_p: Number | None = Field(default=1.0, gt=0, le=1)
    seed: Integer | None = Field(default=0, ge=-(2**63), lt=2**63)
    stop: Ending | Annotated[list[Ending], Field(max_length=4)] | None = Field(
        default=None, description="the answer ends before the first of these"
    )
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Any] | None = Field(default=None, description="none are called")
    tool_choice: Literal["none", "auto"] | None = Field(default=None, description="none are called")
    functions: list[Any] | None = Field(default=None, description="the older name of tools")
    function_call: Literal["none", "auto"] | None = Field(default=None, description="none are called")
    logprobs: Literal[False] | None = Field(default=None, description="they are not reported")
    top_logprobs: Literal[0] | None = Field(default=None, description="they are not reported")
    logit_bias: dict[str, Any] | None = Field(default=None, max_length=0, description="none is added")
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(
        default=None, description="none is taken off"
    )
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(default=None, description="none is taken off")

    @model_validator(mode="before")
    @classmethod
    def _nothing_left_undone(cls, fields: Any) -> Any:
        for name, harmless in _CHANGES_ANSWERS.items() if isinstance(fields, dict) else ():
            if fields.get(name) is not None and fields[name] not in harmless:
                raise PydanticCustomError(
                    "not_done", "{name}: it would change the answer, and is not done; leave it out", {"name": name}
                )
        return fields

    @property
    def endings(self) -> tuple[str, ...]:
        """The texts that an answer ends before."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class StoreChatRequest(ChatRequest):
    """A request for a chat completion, with options of the retrieval."""

    k: Count | None = Field(default=None, description="chunks that the answer is given from; as the model was trained")
    candidates: Count | None = Field(default=CANDIDATES, description="chunks that are looked at and returned")
    how: How | None = Field(default=None, description="what finds the chunks; memory where the model ranks, else words")
    where: Where
    expand: Integer | None = Field(
        default=0, ge=0, le=MOST_CHUNKS, description="so many of the best are given as text, too"
    )
    abstain_below: Number | None = Field(
        default=None, ge=-1, le=1, description="answer nothing where the best score is below"
    )


@dataclasses.dataclass(frozen=True)
class Chunk(Hit):
    """A retrieved chunk; ``score`` is that of memories, BM25, or the sum of reciprocal ranks, by ``how``."""

    score: float
    __pydantic_config__ = ConfigDict(extra="ignore")  # else that of the model it stands in


class Quoted(BaseModel):
    """The sentence of a retrieved chunk that shares the most words with the answer and the question.

    ``start`` and ``end`` count the characters (code points) of the chunk's text; ``answers`` says whether the sentence
    has most of what the answer says beyond the question. Words are compared, so this proves nothing.
    """

    id: str
    start: int
    end: int
    answers: bool


class Found(BaseModel):
    """The retrieval results of an answer.

    ``compress_ratio`` is the text tokens of the selected chunks over the memory vectors that were read instead.
    ``searched`` is the query of the search: the question or, in a conversation, the user's messages "concatenated" up
    to it; ``turns`` is the number of messages before the question that the generator read. ``warnings`` are what should
    be known of the answer: more chunks were read (k) than the model was trained with. ``quotes`` are of the sources
    and of the first three candidates, those of them that share a word with the answer; none before the answer.
    """

    model_config = ConfigDict(extra="forbid")

    candidates: list[Chunk]
    sources: list[Chunk]
    compress_ratio: float
    abstained: bool
    searched: str
    searched_as: Literal["question", "concatenated"]
    turns: int
    milliseconds: dict[str, float]
    warnings: list[str]
    quotes: list[Quoted]


class Said(BaseModel):
    """The message of an answer."""

    role: Literal["assistant"]
    content: str


class Choice(BaseModel):
    """An answer, and the reason for its end."""

    index: int
    message: Said
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """The numbers of tokens; a memory vector counts as one."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """A chat completion as OpenAI's."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class StoreChatResponse(ChatResponse):
    """A chat completion with its sources."""

    found: Found
    sources: list[Chunk]


class Model(BaseModel):
    """A model as OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "clara_jax"


class Models(BaseModel):
    """A list of models as OpenAI's."""

    object: Literal["list"] = "list"
    data: list[Model]


class SearchRequest(Sent):
    """A question, and options of the retrieval."""

    question: Question
    k: Count | None = Field(default=None, description="chunks; as many as the model was trained to read")
    how: How | None = Field(default=None, description="memory where the model ranks, else words")
    where: Where


class SearchResponse(BaseModel):
    """Retrieved chunks, best first."""

    hits: list[Chunk]


class RankRequest(Sent):
    """Texts to be ranked for a question; they are compressed for it and not kept."""

    question: Question
    documents: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=MOST_CHUNKS)


class Ranked(BaseModel):
    """The place of a text in the request, and its score."""

    index: int
    score: float


class RankResponse(BaseModel):
    """The texts in order of their scores, best first."""

    results: list[Ranked]


class NewDocument(Sent):
    """A document to be added; one with the same id is replaced."""

    id: str = Field(min_length=1, max_length=LONGEST_ID)
    text: str = Field(min_length=1)
    title: str | None = Field(default="", max_length=1000)
    source: str | None = Field(default="", max_length=2000)


class AddRequest(Sent):
    """Documents to be added."""

    documents: list[NewDocument] = Field(min_length=1, max_length=1000)


class AddResponse(BaseModel):
    """The number of added documents; the numbers of chunks that were compressed, unchanged and removed.

    ``warnings`` say where the model cannot read the documents.
    """

    documents: int
    compressed: int
    unchanged: int
    removed: int
    warnings: list[str] = []


class Skipped(BaseModel):
    """A part of a file that could not be read, and why."""

    place: str
    reason: str


class FileResponse(AddResponse):
    """What became of a file: `AddResponse`, and what of it was not read.

    ``ids`` are those of its documents, ``skipped`` the first of its lines that could not be read and ``skipped_count``
    the number of them all. ``note`` is what else is to be known of the reading, e.g. a guessed encoding.
    """

    ids: list[str]
    skipped: list[Skipped]
    skipped_count: int
    note: str


class FileKinds(BaseModel):
    """The files that can be sent: ends of their names, the most bytes of one, the most characters of its text."""

    suffixes: list[str]
    most_bytes: int
    most_characters: int


class ListedDocument(BaseModel):
    """A document of the store, with the numbers of its chunks and tokens."""

    id: str
    title: str
    source: str
    chunks: int
    tokens: int


class ListResponse(BaseModel):
    """Documents of the store, and the number of all that fit the question."""

    documents: list[ListedDocument]
    total: int


class DeleteResponse(BaseModel):
    """The id of the deleted document."""

    deleted: str


class Health(BaseModel):
    """The state of the server.

    ``status`` is "ok", "starting" (it compiles, or loads compiled programs; requests wait), "stopping" or "failed".
    ``k`` and ``how`` are what an answer is given from where a request does not say it; null of a base alone.
    """

    status: Literal["ok", "starting", "stopping", "failed"]
    answering: int
    inside: int
    limit: int
    needs_key: bool
    k: int | None = None
    how: How | None = None


class ErrorText(BaseModel):
    """The content of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """An error as OpenAI's."""

    error: ErrorText


def error(message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error response; characters of the message that are not shown are replaced."""
    message = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in message)
    return ErrorResponse(error=ErrorText(message=message, type=kind, param=param)).model_dump()
