"""How records and passages are stored: as the bytes of a tf.train.Example, described by TFDS' features.

The bytes are those that TFDS itself would write for these features, so that any program with TFDS reads them; only here
they are made and read several times faster, and without numpy in between.
"""

from __future__ import annotations

import typing
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from clara_jax.data.passages import Passage
from clara_jax.input_pipeline.records import Record

Item = TypeVar("Item", Record, Passage)

WHERE = "where"
_EXAMPLE: Any = tf_example_pb2  # protobuf makes the messages when it is imported: type checkers see none of them
_FEATURE: Any = tf_feature_pb2
_NAMES = ("qid", "id")  # fields that hold ``where`` for an item that its file gives no name
# Whether a type is text, and whether it is many.
_KINDS = {str: (True, False), tuple[str, ...]: (True, True), int: (False, False), tuple[int, ...]: (False, True)}


class _Field(NamedTuple):
    """A field's name, whether it holds text or whole numbers, and whether one or any number of them."""

    name: str
    text: bool
    many: bool


class Schema(Generic[Item]):
    """The stored form of a dataclass.

    Args:
      item: the dataclass; its fields are strings, whole numbers, and tuples of either, and one of them is ``where``.
    """

    def __init__(self, item: type[Item]):
        self.item = item
        self._fields = [_Field(name, *_KINDS[kind]) for name, kind in typing.get_type_hints(item).items()]

    def features(self) -> tfds.features.FeaturesDict:
        """Return the features for TFDS, which gives strings back as bytes and tuples as arrays of any length."""
        features = {}
        for name, text, many in self._fields:
            one = tfds.features.Text() if text else tfds.features.Scalar(np.int64)
            features[name] = tfds.features.Sequence(one) if many else one
        return tfds.features.FeaturesDict(features)

    def encode(self, item: Item) -> bytes:
        """Return an item's bytes, the same for equal items."""
        feature = {}
        for name, text, many in self._fields:
            value = getattr(item, name)
            values = value if many else (value,)
            if text:
                texts = [_bytes(value) for value in values]
                feature[name] = _FEATURE.Feature(bytes_list=_FEATURE.BytesList(value=texts))
            else:
                feature[name] = _FEATURE.Feature(int64_list=_FEATURE.Int64List(value=values))
        example = _EXAMPLE.Example(features=_FEATURE.Features(feature=feature))
        return example.SerializeToString(deterministic=True)

    def decode(self, data: bytes) -> Item:
        """Return the item that `encode` was given."""
        feature, fields = _EXAMPLE.Example.FromString(data).features.feature, {}
        for name, text, many in self._fields:
            if text:
                values = tuple([str(value, "utf-8", "surrogatepass") for value in feature[name].bytes_list.value])
            else:
                values = tuple(feature[name].int64_list.value)
            fields[name] = values if many else values[0]
        return self.item(**fields)

    def content(self, item: Item) -> bytes:
        """Return an item's content, whatever file it was read from: all fields but ``where`` and a name taken from it.

        Every text follows its length, so that different items never have the same content.
        """
        parts: list[bytes] = []
        for name, text, many in self._fields:
            value = getattr(item, name)
            if name == WHERE:
                continue
            if name in _NAMES and value == item.where:
                values = ()
            else:
                values = value if many else (value,)
            parts.append(b"%d;" % len(values))
            for one in values:
                encoded = _bytes(one) if text else b"%d" % one
                parts += (b"%d:" % len(encoded), encoded)
        return b"".join(parts)


def _bytes(text: str) -> bytes:
    # A file's name, and so ``where``, may hold what is no UTF-8; so may a "qid".
    return text.encode("utf-8", "surrogatepass")


RECORD: Schema[Record] = Schema(Record)
PASSAGE: Schema[Passage] = Schema(Passage)
