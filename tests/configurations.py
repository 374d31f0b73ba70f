"""Configurations for tests."""

import dataclasses

from clara_jax.configs import common
from clara_jax.configs.common import merged
from clara_jax.training.stage_config import StageConfig


def stage(name="scp", **fields):
    """A stage of four steps, with some fields of its groups; each group is a dict."""
    return StageConfig(**merged(dict(name=name, data=dict(train=("a.jsonl",)), optimizer=dict(steps=4)), fields))


def changed(section, **fields):
    """A section with other values of some fields; those of its groups are given as dicts."""
    inner = {
        name: changed(getattr(section, name), **value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return dataclasses.replace(section, **inner)


def small_run(base, data, stages, by_stage, *, batch_size, answers, mesh):
    """The configuration of a run of six steps a stage over `tests.tiny.write_records`, for a config file to return.

    Args:
      base: of the model, a folder.
      data: the folder of the records.
      stages: their names, joined by "+".
      by_stage: fields of some stages, in groups.
      batch_size: records of a step, computed in two parts.
      answers: held-out questions that are answered.
      mesh: of the devices.
    """
    small = dict(
        optimizer=dict(steps=6, batch_size=batch_size, accumulate=2, learning_rate=1e-2),
        topk=dict(k=2, candidates=4),
        evaluation=dict(every=3, limit=4, answers=answers, answer_tokens=3),
        saving=dict(every=2),
    )

    def files(name):
        path = (f"{data}/{'end_to_end' if name == 'retrieval' else name}.jsonl",)
        return dict(data=dict(train=path), evaluation=dict(data=path))

    return common.run(
        {name: merged(small, files(name), by_stage.get(name, {})) for name in stages.split("+")},
        model=dict(base=base, precision="float32"),
        clara=dict(doc_max_length=64, compress_rate=16, lora_rank=8, lora_dropout=0.1, max_length=256),
        mesh=mesh,
        reporting=dict(progress_seconds=1e-3, show=0),
    )
