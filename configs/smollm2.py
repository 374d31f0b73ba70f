"""SmolLM2-135M through the stages of CLaRa on real questions and paragraphs, on a CPU.

    python -m clara_jax.train --workdir runs/smollm2 --config configs/smollm2.py:size=short
    python -m clara_jax.train --workdir runs/smollm2_64 --config configs/smollm2.py:size=full,rate=64,stages=scp

Arguments, as ``key=value,...``:

- ``stages``: which, in order, joined by ``+``: scp, instruct, end_to_end (all three);
- ``rate``: the compress rate (16);
- ``size``: ``short`` (half an hour on two CPU cores), ``tiny`` (a few steps, to see it run), ``full`` (passes
  over all the data, for an accelerator);
- ``data``: the directory of the data ($CLARA_SHARED_DATA, else ../shared/data beside the checkout);
- ``base``: the base model (smollm2).
"""

import os

from configs import common

TRAIN = {
    "scp": (
        "squad/stage1_pretrain_qa.train.jsonl",
        "extra/paraphrase_wikisplit/stage1_pretrain_paraphrase.train.jsonl",
    ),
    "instruct": ("squad/stage1_2_instruction.train.jsonl",),
    "end_to_end": ("squad/stage2_end_to_end.train.jsonl",),
}
HELD_OUT = {
    "scp": ("squad/stage1_pretrain_qa.dev.jsonl",),
    "instruct": ("squad/stage1_2_instruction.dev.jsonl",),
    "end_to_end": ("squad/stage2_end_to_end.dev.jsonl",),
}

# A record costs about 0.8 k tokens in scp, 1.6 k in instruct (five documents) and, with eight candidates, 2.3 k forward
# ones in end_to_end; two cores do some 200 tokens/s with the backward pass and 600 without. The rates are higher than
# Table 10's for a 7B model: the base is small and the run short. "short" takes a few records twice, so that means over
# the two passes compare the same records: between batches of 4 the records differ more than the steps do.
SIZES = {
    "tiny": {
        "scp": dict(steps=4, batch_size=2, train_limit=16, eval_limit=2),
        "instruct": dict(steps=2, batch_size=2, train_limit=8, eval_limit=2, top_k=5),
        "end_to_end": dict(steps=2, batch_size=2, train_limit=8, eval_limit=2, top_k=2, candidates=3),
    },
    "short": {
        "scp": dict(steps=30, batch_size=4, learning_rate=1e-3, eval_limit=24),
        "instruct": dict(epochs=2.0, train_limit=48, batch_size=4, accumulate=2, learning_rate=5e-4, eval_limit=24),
        "end_to_end": dict(
            epochs=2.0, train_limit=48, batch_size=4, learning_rate=2e-4, eval_limit=24, candidates=8, top_k=5
        ),
    },
    "full": {
        "scp": dict(epochs=1.0, batch_size=32, learning_rate=5e-4, eval_every=100, pack=1024),
        "instruct": dict(epochs=2.0, batch_size=32, learning_rate=2e-4, eval_every=50, buckets=4),
        "end_to_end": dict(epochs=2.0, batch_size=32, learning_rate=1e-4, eval_every=25, candidates=20, buckets=4),
    },
}


def get_config(arg=None):
    args = common.parse_arg(
        arg, stages="scp+instruct+end_to_end", rate=16, size="short", data=common.shared_data(), base="smollm2"
    )
    sizes = common.choose("size", args.size, SIZES)
    tiny = args.size == "tiny"
    stages = {}
    for name in args.stages.split("+"):
        fields = common.choose("stages", name, sizes)
        files = {
            key: tuple(os.path.join(args.data, file) for file in table[name])
            for key, table in (("train_data", TRAIN), ("eval_data", HELD_OUT))
        }
        answers = dict(eval_answers=2 if tiny else 16, answer_tokens=4 if tiny else 16)
        stages[name] = dict(warmup=0.1) | answers | fields | files
    return common.run(
        stages,
        model=dict(base=args.base, precision="float32", remat="none"),
        clara=dict(doc_max_length=64 if tiny else 256, compress_rate=args.rate),
    )
