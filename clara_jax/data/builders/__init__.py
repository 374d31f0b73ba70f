"""Data sets of records and passages in the format of TFDS, without TensorFlow: built from JSONL, read by number.

Importing this package registers ``clara_scp``, ``clara_instruct``, ``clara_end_to_end`` and ``clara_corpus`` with TFDS.
"""

from clara_jax.data.builders.build import BuildReport, SplitReport, build
from clara_jax.data.builders.fingerprint import fingerprint
from clara_jax.data.builders.schema import PASSAGE, RECORD
from clara_jax.data.builders.source import RecordSource, dataset_directory, read_metadata
from clara_jax.data.passages import Passage, parse_passage

__all__ = [
    "PASSAGE",
    "RECORD",
    "BuildReport",
    "Passage",
    "RecordSource",
    "SplitReport",
    "build",
    "dataset_directory",
    "fingerprint",
    "parse_passage",
    "read_metadata",
]
