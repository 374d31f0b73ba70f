"""SmolLM2-135M through the stages of CLaRa on real questions and paragraphs, on a CPU.

    python -m clara_jax.train --workdir runs/smollm2 --config configs/smollm2.py:size=short
    python -m clara_jax.train --workdir runs/smollm2_64 --config configs/smollm2.py:size=full,rate=64,stages=scp
    python -m clara_jax.train --workdir runs/smollm2_text --config configs/smollm2.py:size=short,documents=text
    python -m clara_jax.train --workdir runs/smollm2_rank --config configs/smollm2.py:stages=retrieval,start=CHECKPOINT

Arguments, as ``key=value,...``:

- ``stages``: which, in order, joined by ``+``: scp, instruct, end_to_end (these three), and retrieval, the contrastive
  query reasoner that end_to_end is to be compared with;
- ``start``: a run or checkpoint to start from instead of the base;
- ``rate``: the compress rate (16);
- ``size``: ``short`` (half an hour on two CPU cores), ``tiny`` (a few steps, to see it run), ``full`` (passes
  over all the data, for an accelerator);
- ``documents``: ``memory``, or ``text`` for the control of equal data: the generator's adapter is trained by the same
  stages, with the documents as texts in its prompt, and nothing else is;
- ``data``: the directory of the data ($CLARA_SHARED_DATA, else ../shared/data beside the checkout);
- ``base``: the base model (smollm2).

What is equal with ``documents=text``: records, held-out records, batch sizes, steps, learning rates and their
schedules, stage by stage; the generator's adapter and where it starts; how much of a document is read; and in ``tiny``
and ``short`` the order of the records, and so the batch of every step (in ``full`` records of a size share a batch, and
the size is then that of the texts; scp is not packed). What is not: there is no compressor to train, and no L_MSE; a
prompt has room for five texts; batches are computed in more parts, which changes nothing but the memory they take; and
where end_to_end chooses ``top_k`` of its candidates, the texts are the positive documents, then the first others: a
perfect retriever's.
"""

import os

from clara_jax.data.records import RANKING_STAGES
from configs import common

TRAIN = {
    "scp": (
        "squad/stage1_pretrain_qa.train.jsonl",
        "extra/paraphrase_wikisplit/stage1_pretrain_paraphrase.train.jsonl",
    ),
    "instruct": ("squad/stage1_2_instruction.train.jsonl",),
    "end_to_end": ("squad/stage2_end_to_end.train.jsonl",),
    "retrieval": ("squad/stage2_end_to_end.train.jsonl",),
}
HELD_OUT = {
    "scp": ("squad/stage1_pretrain_qa.dev.jsonl",),
    "instruct": ("squad/stage1_2_instruction.dev.jsonl",),
    "end_to_end": ("squad/stage2_end_to_end.dev.jsonl",),
    "retrieval": ("squad/stage2_end_to_end.dev.jsonl",),
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

# With documents=text. A prompt of five texts has 800 tokens, and up to 1,200: fewer of them at a time; and of what is
# packed, the documents' tokens, there are none.
TEXT = {"tiny": {}, "short": dict(accumulate=2), "full": dict(accumulate=4, pack=0, buckets=4)}


def get_config(arg=None):
    args = common.parse_arg(
        arg,
        stages="scp+instruct+end_to_end",
        rate=16,
        size="short",
        documents="memory",
        start="",
        data=common.shared_data(),
        base="",
    )
    sizes = common.choose("size", args.size, SIZES)
    sizes = sizes | dict(retrieval=sizes["end_to_end"])  # equal data and steps
    as_text = common.choose("documents", args.documents, dict(memory=False, text=True))
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
        if name in RANKING_STAGES and not as_text:
            stages[name]["memories"] = "run"  # the compressor is frozen: each document is compressed once
        if as_text:
            stages[name] |= dict(documents="text") | TEXT[args.size]
    return common.run(
        stages,
        model=dict(
            base=args.base or ("" if args.start else "smollm2"),
            precision="float32",
            remat="full" if as_text and args.size == "full" else "none",
        ),
        clara=dict(doc_max_length=64 if tiny else 256, compress_rate=args.rate, max_length=2048 if as_text else 1024),
        initial_checkpoint=args.start or None,
    )
