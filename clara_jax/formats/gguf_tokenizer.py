"""Tokenizer of a GGUF file's metadata: ``tokenizer.ggml.*`` as a fast tokenizer with its chat template.

Two kinds are known: byte-level BPE, whose splits of text the metadata only names, and SentencePiece BPE, whose merges
follow from its pieces and their scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clara_jax.errors import ClaraError
from clara_jax.formats.gguf_metadata import GGUFMetadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_SPLIT = _CONTRACTION + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPLITS = {  # tokenizer.ggml.pre → how text is split before the merges; None is GPT-2's pattern
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _LLAMA3_SPLIT,
    "dbrx": _LLAMA3_SPLIT,  # Phi-4
    "qwen2": _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"),
    "gpt-4o": (  # Phi-4-mini
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
LONGEST_PIECE = 1024  # of SentencePiece, in characters
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type


def build_tokenizer(metadata: GGUFMetadata) -> PreTrainedTokenizerFast:
    """Build the tokenizer of the metadata; see `clara_jax.formats.gguf_file.GGUFFile.tokenizer`."""
    from clara_jax.formats.hf_tokenizers import PreTrainedTokenizerFast

    model = metadata.get("tokenizer.ggml.model", kind=str)
    makers = {"gpt2": _byte_level_tokenizer, "llama": _sentencepiece_tokenizer}
    if model not in makers:
        metadata.fail(f'tokenizer model "{model}" is not supported; known: {", ".join(makers)}')
    tokens, types = _tokens(metadata)
    try:
        tokenizer = makers[model](metadata, tokens, types)
        _add_tokens(metadata, tokenizer, tokens, types)
    except ClaraError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises plain Exception, and its panics are not even that
        metadata.fail(f"the tokenizer in the metadata is damaged ({str(error)[:300]})")

    special = {}
    # Where these ids are missing, SentencePiece's defaults hold; other tokenizers have no such tokens then.
    defaults = {"unk": 0, "bos": 1, "eos": 2} if model == "llama" else {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id", defaults.get(name), int)
        if token_id is None:
            continue
        if token_id not in tokens:
            metadata.fail(f'"tokenizer.ggml.{key}_token_id" is {token_id}, which is no token of its list')
        special[f"{name}_token"] = tokens[token_id]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template", kind=str),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _tokens(metadata: GGUFMetadata) -> tuple[dict[int, str], dict[int, int]]:
    """Return tokens and their types by id, without the filler of padded vocabularies."""
    tokens = metadata.values("tokenizer.ggml.tokens", str)
    if not tokens:
        metadata.fail('"tokenizer.ggml.tokens" is missing; the file holds no tokenizer')
    types = metadata.values("tokenizer.ggml.token_type", int) or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        metadata.fail(f'"tokenizer.ggml.token_type" has {len(types)} entries for {len(tokens)} tokens')
    kept = [
        i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED or token != f"[PAD{i}]"
    ]
    return {i: tokens[i] for i in kept}, {i: types[i] for i in kept}


def _byte_level_tokenizer(metadata: GGUFMetadata, tokens: dict[int, str], types: dict[int, int]) -> Tokenizer:
    """Build a byte-level BPE tokenizer (GPT-2 and its successors)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre", "default", str)
    if pre not in _SPLITS:
        metadata.fail(f'pre-tokenizer "{pre}" is not supported; known: {", ".join(_SPLITS)}')
    merges = metadata.values("tokenizer.ggml.merges", str)
    if merges is None:
        metadata.fail('"tokenizer.ggml.merges" is missing; the file holds no byte-level tokenizer')
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocabulary = {token: i for i, token in tokens.items()}
    # Llama 3 keeps a word that is a token whole, even where its merges would not produce it.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe"))
    steps = []
    if pre == "smollm":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern := _SPLITS[pre]:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_tokenizer(metadata: GGUFMetadata, tokens: dict[int, str], types: dict[int, int]) -> Tokenizer:
    """Build a SentencePiece BPE tokenizer (Llama 2, Mistral, Phi-3).

    Neighbours whose concatenation is a token are merged, best score first.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.values("tokenizer.ggml.scores", float)
    if scores is None or len(scores) <= max(tokens):
        metadata.fail('"tokenizer.ggml.scores" is missing or too short; the file holds no SentencePiece tokenizer')
    if metadata.get("tokenizer.ggml.precompiled_charsmap"):
        metadata.fail('"tokenizer.ggml.precompiled_charsmap": normalising SentencePiece models are not supported')
    vocabulary = {token: i for i, token in tokens.items()}
    mergeable = {token for i, token in tokens.items() if types[i] in (_NORMAL, _USER_DEFINED, _UNUSED)}
    merges = []
    if longest := max(mergeable, key=len, default=""):
        if len(longest) > LONGEST_PIECE:  # the time grows with the square of it
            metadata.fail(f"the tokenizer has a token of {len(longest):,} characters")
    for token in mergeable:
        for cut in range(1, len(token)):
            if token[:cut] in mergeable and token[cut:] in mergeable:
                # Ties as in Hugging Face's conversion: the longer left part first.
                order = (-scores[vocabulary[token]], -cut, cut - len(token), vocabulary[token])
                merges.append((order, (token[:cut], token[cut:])))
    unknown = tokens.get(metadata.get("tokenizer.ggml.unknown_token_id", 0, int))
    pairs = [pair for _, pair in sorted(merges)]
    model = models.BPE(vocab=vocabulary, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    # The "space" of SentencePiece is U+2581; one is put before each stretch of text.
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        ([normalizers.Prepend("▁")] if prefix else []) + [normalizers.Replace(" ", "▁")]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _add_tokens(metadata: GGUFMetadata, tokenizer: Tokenizer, tokens: dict[int, str], types: dict[int, int]):
    """Add the tokens that are found in the text before it is split."""
    from tokenizers import AddedToken

    # Phi-3's tokenizer swallows white space after its markers; GGUF has no field for it.
    swallowing = metadata.architecture == "phi3" and metadata.get("tokenizer.ggml.model") == "llama"
    added: dict[bool, list[AddedToken]] = {True: [], False: []}
    for i, kind in types.items():
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            special = kind != _USER_DEFINED
            right = swallowing and tokens[i] not in ("<unk>", "<s>", "<|endoftext|>")
            added[special].append(AddedToken(tokens[i], normalized=False, rstrip=right, special=special))
    tokenizer.add_special_tokens(added[True])
    tokenizer.add_tokens(added[False])
