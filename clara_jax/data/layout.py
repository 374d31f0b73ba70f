"""What a built data set is called and made of, for those who need not open one."""

from __future__ import annotations

from clara_jax.input_pipeline.records import STAGES as RECORD_STAGES

CORPUS = "corpus"
STAGES = (*RECORD_STAGES, CORPUS)  # as what the lines of its files are read
METADATA, INFO = "metadata.json", "dataset_info.json"  # ours, and TFDS'
