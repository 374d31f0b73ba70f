"""The JSON of reranking, as Cohere's and Jina's, and of embeddings, as OpenAI's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictBool

from clara_jax.serving.schema import MOST_CHUNKS, Integer, Question, Sent

MOST_INPUTS = 1000  # texts of a request for embeddings


class TextDocument(Sent):
    """A document as its text alone."""

    text: str = Field(min_length=1)


class RerankRequest(Sent):
    """Documents to be ranked for a query, as Cohere's and Jina's; they are compressed for it and not kept."""

    model: str | None = Field(default=None, description="any name: there is one model")
    query: Question
    documents: list[Annotated[str, Field(min_length=1)] | TextDocument] = Field(min_length=1, max_length=MOST_CHUNKS)
    top_n: Annotated[Integer, Field(ge=1)] | None = Field(default=None, description="results; default all")
    return_documents: StrictBool | None = False

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class Reranked(BaseModel):
    """The place of a document in the request, its score, and the document where it was asked for."""

    index: int
    relevance_score: float
    document: TextDocument | None = None


class InputTokens(BaseModel):
    """The number of tokens that were read."""

    input_tokens: int


class RerankMeta(BaseModel):
    """What Cohere's responses have beside the results."""

    tokens: InputTokens


class TokensRead(BaseModel):
    """The numbers of tokens of a request that writes none."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(BaseModel):
    """Ranked documents, best first; ``usage`` is Jina's, ``meta`` Cohere's."""

    id: str
    model: str
    results: list[Reranked]
    usage: TokensRead
    meta: RerankMeta


class EmbeddingsRequest(Sent):
    """Texts to be embedded, as OpenAI's."""

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    model: str | None = Field(default=None, description="any name: there is one model")
    encoding_format: Literal["float", "base64"] | None = "float"
    input_type: Literal["document", "query"] | None = Field(
        default="document", description="a query is read by the query reasoner, a document by the compressor"
    )
    dimensions: None = Field(default=None, description="vectors are as long as the model makes them")

    @property
    def texts(self) -> list[str]:
        """The texts, one or several."""
        return [self.input] if isinstance(self.input, str) else self.input


class Embedding(BaseModel):
    """The vector of a text: numbers, or float32 in base64 (little-endian)."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsResponse(BaseModel):
    """Embeddings as OpenAI's, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: TokensRead
