"""The TFDS data sets of this package: records and passages from files that a user names when they are built.

``import clara_jax.data.builders`` registers them: ``tfds.builder("clara_scp", data_dir=DIR)`` then finds what lies in
DIR, and ``tfds.builder("clara_scp", data_dir=DIR, files={"train": ["*.jsonl"]}).download_and_prepare()`` builds it. No
TensorFlow is needed for either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tqdm import tqdm

from clara_jax.data.builders.fingerprint import FORMAT, Fingerprint, of_splits
from clara_jax.data.builders.reading import ItemReader, schema_of
from clara_jax.data.builders.schema import Item
from clara_jax.data.builders.shards import ShardWriter
from clara_jax.errors import ClaraError
from clara_jax.formats.jsonl import ON_ERROR, Rejects, data_files, is_remote, raw_lines
from clara_jax.strict_json import sealed

SHARD_BYTES = 256 * 2**20
REJECTED = "rejected.jsonl"


class JsonlDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set made of JSONL files: one item a line, in the order of files and lines.

    Args:
      files: patterns of files (`clara_jax.formats.jsonl.data_files`) by split. None for a data set that is there
        already.
      stage: the stage whose records the lines are; by default that of the class.
      on_error: "stop" at the first line that is no item, or "skip" it and write it to ``rejected.jsonl``.
      shard_bytes: size of the items, uncompressed, at which a shard is full.
      progress: show a bar for each split.
      options: ``data_dir`` and the like, as for every TFDS builder.
    """

    VERSION = tfds.core.Version(f"{FORMAT}.0.0")
    # Nothing is downloaded; TFDS would look for checksums, which takes another package.
    url_infos: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleVariableOverride]  # a cached property there
    STAGES: ClassVar[tuple[str, ...]] = ()
    DESCRIPTION: ClassVar[str] = ""

    def __init__(
        self,
        *,
        files: Mapping[str, Sequence[str]] | None = None,
        stage: str | None = None,
        on_error: str = "stop",
        shard_bytes: int = SHARD_BYTES,
        progress: bool = True,
        file_format: str = "array_record",
        **options: Any,
    ):
        if on_error not in ON_ERROR:
            raise ClaraError(f"on_error is {on_error!r}; it must be one of {', '.join(ON_ERROR)}")
        if stage not in (None, *self.STAGES):
            raise ClaraError(f"stage {stage!r}: {self.name} is for {', '.join(self.STAGES)}")
        self.files, self.stage, self.on_error = files, stage or self.STAGES[0], on_error
        self.shard_bytes, self.progress = shard_bytes, progress
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=schema_of(self.STAGES[0]).features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any, rejects: Rejects | None = None) -> dict[str, ItemReader]:
        if not self.files:
            raise ClaraError(f"{self.name}: there is no data set in {self.data_dir}, and no files to make one of")
        return {split: self._generate_examples(split, rejects) for split in self.files}

    def _generate_examples(self, split: str, rejects: Rejects | None = None) -> ItemReader:
        assert self.files is not None  # `_split_generators` refuses a data set without files
        return ItemReader(data_files(self.files[split], f"files of split {split}"), self.stage, rejects)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """Write all splits; memory does not grow with the number of items, see `ShardWriter`."""
        infos, about, folder = [], {}, os.fspath(self.data_dir)
        skip = self.on_error == "skip"
        with Rejects(os.path.join(folder, REJECTED)) if skip else contextlib.nullcontext() as rejects:
            for split, reader in self._split_generators(dl_manager, rejects).items():
                before = rejects.count if rejects else 0
                writer = ShardWriter(self._get_filename_template(split), self.shard_bytes)
                found = Fingerprint(schema_of(self.stage))
                for item in self._watched(reader, split):
                    found.add(item)
                    writer.add(schema_of(self.stage).encode(item))
                info, shards = writer.finish()
                infos.append(info)
                about[split] = {
                    "fingerprint": found.hexdigest(),
                    "records": info.num_examples,
                    "with_positives": reader.with_positives,
                    "rejected": rejects.count - before if rejects else 0,
                    "files": list(reader.files),
                    "shards": [dataclasses.asdict(shard) for shard in shards],
                }
        self.info.set_splits(tfds.core.SplitDict(infos))
        whole = of_splits({split: facts["fingerprint"] for split, facts in about.items()})
        metadata = {"format": FORMAT, "stage": self.stage, "fingerprint": whole, "splits": about}
        assert self.info.metadata is not None  # `_info` gives it
        self.info.metadata.update(sealed(metadata))

    def _watched(self, reader: ItemReader, split: str) -> Iterator[Item]:
        """Yield the items, with a progress bar that has a total where all files are local: counting lines is quick."""
        total = None
        if self.progress and not any(map(is_remote, reader.files)):
            total = sum(1 for path in reader.files for _ in raw_lines(path))
        with tqdm(reader, desc=split, total=total, unit=" records", disable=not self.progress) as bar:
            yield from bar

    def _log_download_bytes(self) -> None:
        """Skip the message: nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Skip the message: the caller reports what was built."""


class ClaraScp(JsonlDataset):
    """The data set of the stage scp."""

    STAGES = ("scp",)
    DESCRIPTION = "One document a record, with questions and answers about it, or paraphrased."


class ClaraInstruct(JsonlDataset):
    """The data set of the stage instruct."""

    STAGES = ("instruct",)
    DESCRIPTION = "A question over a few documents, and its answer."


class ClaraEndToEnd(JsonlDataset):
    """The data set of the stages end_to_end and retrieval."""

    STAGES = ("end_to_end", "retrieval")
    DESCRIPTION = "A question over candidates, its answer, and the places of those that hold it, where they are known."


class ClaraCorpus(JsonlDataset):
    """The data set of a corpus."""

    STAGES = ("corpus",)
    DESCRIPTION = "Passages of documents, each of a length that is compressed at one time."


DATASETS: dict[str, type[JsonlDataset]] = {
    stage: dataset for dataset in (ClaraScp, ClaraInstruct, ClaraEndToEnd, ClaraCorpus) for stage in dataset.STAGES
}
