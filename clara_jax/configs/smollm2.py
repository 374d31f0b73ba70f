"""SmolLM2-135M learns to read its memories, then to rank and answer from them, on real passages and questions.

    python -m clara_jax.train --workdir runs/smollm2 --config configs/smollm2.py:size=short
    python -m clara_jax.train --workdir runs/smollm2_text --config configs/smollm2.py:size=short,documents=text
    python -m clara_jax.train --workdir runs/smollm2_unread --config configs/smollm2.py:size=short,scaffold=0
    python -m clara_jax.train --workdir runs/smollm2_full --config configs/smollm2.py:size=full,rate=16
    python -m clara_jax.train --workdir runs/smollm2_rank --config configs/smollm2.py:stages=retrieval,start=CHECKPOINT

Arguments, as ``key=value,...``:

- ``size``: ``short`` (half an hour to three quarters on two CPU cores: 64 tokens in 16 memories are read), ``tiny``
  (a few steps, to see it run), ``full`` (the whole curriculum up to paragraphs, then five documents, then ranking: for
  days of a CPU or an accelerator);
- ``stages``: which, in order, joined by ``+``: read (the curriculum), or sections of it by name (autoencode_16,
  instruct_16, instruct_32, ...), scp, instruct, end_to_end, and retrieval, the contrastive query reasoner that
  end_to_end is to be compared with. Default: read, and in ``tiny`` and ``full`` read+instruct+end_to_end;
- ``rate``: the compress rate at the end (4);
- ``places``: where memory tokens stand, each after its ``runs`` of the text, or all at its ``end``;
- ``scaffold``: 1, or 0 for the control without: memories then start as mapped last-layer states, and are not read;
- ``documents``: ``memory``, or ``text`` for the control of equal data: the generator's adapter is trained on the same
  questions, with the documents as texts in its prompt, and nothing else is;
- ``start``: a run or checkpoint to start from instead of the base;
- ``seed``: of initial values, order of records and windows (0);
- ``data``: the directory of the data ($CLARA_SHARED_DATA, else ../shared/data beside the checkout);
- ``base``: the base model (smollm2).

The curriculum (docs/reading.md): windows are written out from their memories, which start as pooled input embeddings
(scaffold 1); the scaffold falls to 0 while questions are mixed in; windows grow, from 16 tokens to paragraphs; then the
rate does, from 4 to ``rate``. There is one memory token for all places, so that lengths and rates may change.

What is equal with ``documents=text``: questions, held-out records, batch sizes, steps, learning rates and their
schedules, section by section; the generator's adapter and where it starts; how much of a document is read. What is not:
no passage is written out or continued, for a text in the prompt would only be copied; so the section of passages alone
is left out, and a batch holds questions in the passages' places; there is no compressor to train; batches of scp,
instruct and end_to_end are computed in more parts, which changes nothing but the memory they take; and where end_to_end
chooses ``top_k`` of its candidates, the texts are the positive documents, then the first others: a perfect retriever's.
"""

import os

from clara_jax.configs import common
from clara_jax.errors import ClaraError
from clara_jax.input_pipeline.records import RANKING_STAGES

QUESTIONS = ("questions:squad/stage1_pretrain_qa.train.jsonl",)
MORE_QUESTIONS = (
    "questions:extra/nq/stage1_pretrain_qa.train.jsonl",
    "questions:extra/fairytaleqa/stage1_pretrain_qa.train.jsonl",
    "questions:extra/boolq/stage1_pretrain_qa.jsonl",
)
POOL = ("pool/wiki_leads.jsonl.gz", "pool/openstax.jsonl.gz")
HELD_OUT = "squad/stage1_pretrain_qa.dev.jsonl"

TRAIN = {
    "scp": (
        "squad/stage1_pretrain_qa.train.jsonl",
        "extra/paraphrase_wikisplit/stage1_pretrain_paraphrase.train.jsonl",
    ),
    "instruct": ("squad/stage1_2_instruction.train.jsonl",),
    "end_to_end": ("squad/stage2_end_to_end.train.jsonl",),
    "retrieval": ("squad/stage2_end_to_end.train.jsonl",),
}
EVAL = {
    "scp": ("squad/stage1_pretrain_qa.dev.jsonl",),
    "instruct": ("squad/stage1_2_instruction.dev.jsonl",),
    "end_to_end": ("squad/stage2_end_to_end.dev.jsonl",),
    "retrieval": ("squad/stage2_end_to_end.dev.jsonl",),
}

# Sections of the curriculum: (length of a window, rate, steps). The first writes out passages alone; in the second the
# scaffold falls. Lengths grow at rate 4, rates at the full length (in
# the short ones: in the last section).
READ = {
    "tiny": ((16, 4, 2), (16, 4, 2)),
    "short": ((16, 4, 60), (16, 4, 60), (32, 4, 100), (64, 4, 150)),
    "full": (
        (16, 4, 100),
        (16, 4, 150),
        (32, 4, 400),
        (64, 4, 800),
        (128, 4, 1500),
        (256, 4, 2000),
        (256, 8, 2000),
        (256, 16, 3000),
        (256, 32, 2000),
    ),
}
# Of windows of 16 tokens, and of longer ones. At 1e-3 batches of 8 lose part of what was learned.
BATCH = {"tiny": (2, 2), "short": (16, 8), "full": (32, 32)}
LEARNING_RATE = {"tiny": (1e-3, 1e-3), "short": (1e-3, 7e-4), "full": (1e-3, 1e-3)}

# What follows the curriculum. Learning rates are higher than Table 10's for a 7B model: the base is small.
SIZES = {
    "tiny": {
        "scp": dict(data=dict(limit=16), optimizer=dict(steps=4, batch_size=2), evaluation=dict(limit=2)),
        "instruct": dict(data=dict(limit=8), optimizer=dict(steps=2, batch_size=2), evaluation=dict(limit=2)),
        "end_to_end": dict(
            data=dict(limit=8),
            optimizer=dict(steps=2, batch_size=2),
            topk=dict(k=2, candidates=3),
            evaluation=dict(limit=2),
        ),
    },
    "short": {
        "scp": dict(optimizer=dict(steps=30, batch_size=4, learning_rate=1e-3), evaluation=dict(limit=24)),
        "instruct": dict(
            data=dict(limit=48),
            optimizer=dict(epochs=2.0, batch_size=4, accumulate=2, learning_rate=5e-4),
            evaluation=dict(limit=24),
        ),
        "end_to_end": dict(
            data=dict(limit=48),
            optimizer=dict(epochs=2.0, batch_size=4, learning_rate=2e-4),
            topk=dict(k=5, candidates=8),
            evaluation=dict(limit=24),
        ),
    },
    "full": {
        "scp": dict(
            data=dict(pack=1024),
            optimizer=dict(epochs=1.0, batch_size=32, learning_rate=5e-4),
            evaluation=dict(every=100),
        ),
        "instruct": dict(
            data=dict(buckets=4),
            optimizer=dict(epochs=2.0, batch_size=32, learning_rate=2e-4),
            evaluation=dict(every=50),
        ),
        "end_to_end": dict(
            data=dict(buckets=4),
            optimizer=dict(epochs=2.0, batch_size=32, learning_rate=1e-4),
            topk=dict(candidates=20),
            evaluation=dict(every=25),
        ),
    },
}
STAGES = {"tiny": "read+instruct+end_to_end", "short": "read", "full": "read+instruct+end_to_end"}

# With documents=text. A prompt of five texts has 800 tokens, and up to 1,200: fewer of them at a time; and of what is
# packed, the documents' tokens, there are none.
TEXT = {
    "tiny": {},
    "short": dict(optimizer=dict(accumulate=2)),
    "full": dict(optimizer=dict(accumulate=4), data=dict(pack=0, buckets=4)),
}


def get_config(arg=None):
    """Return the configuration; the module's docstring lists the arguments."""
    args = common.parse_arg(
        arg,
        stages="",
        rate=4,
        places="runs",
        size="short",
        scaffold=1,
        documents="memory",
        start="",
        seed=0,
        data=common.shared_data(),
        base="",
    )
    sizes = common.choose("size", args.size, SIZES)
    sizes = sizes | dict(retrieval=sizes["end_to_end"], read=None)  # retrieval: equal data and steps
    as_text = common.choose("documents", args.documents, dict(memory=False, text=True))
    scaffold = common.choose("scaffold", str(args.scaffold), {"0": 0.0, "1": 1.0})
    tiny = args.size == "tiny"
    stages = {}
    for name in (args.stages or STAGES[args.size]).split("+"):
        if name == "read" or name not in sizes:
            sections = _read(args, scaffold, as_text)
            chosen = sections if name == "read" else {name: common.choose("stages", name, sizes | sections)}
            stages |= chosen
            continue
        parts = [
            dict(
                data=dict(train=TRAIN[name]),
                optimizer=dict(warmup=0.1),
                objective=dict(mse_weight=0.0 if name != "scp" else 0.1),
                evaluation=dict(data=EVAL[name], answers=2 if tiny else 16, answer_tokens=4 if tiny else 16),
            ),
            sizes[name],
        ]
        if name in RANKING_STAGES and not as_text:
            parts.append(dict(data=dict(memories="run")))  # the compressor is frozen: each document is compressed once
        if name == "end_to_end":
            parts.append(dict(topk=common.RELAXED_SORT))
        if as_text:
            parts += [dict(data=dict(documents="text")), TEXT[args.size]]
        stages[name] = common.merged(*parts)
    for fields in stages.values():
        for group, key in (("data", "train"), ("evaluation", "data")):
            fields[group][key] = tuple(_within(args.data, file) for file in fields[group][key])
    return common.run(
        stages,
        model=dict(
            base=args.base or ("" if args.start else "smollm2"),
            precision="auto",
            remat="full" if as_text and args.size == "full" else "none",
        ),
        clara=dict(
            doc_max_length=64 if args.size == "tiny" else 256,
            compress_rate=args.rate,
            lora_dropout=0.0,
            different_mem_tokens=False,
            memory_map="affine",
            memory_places=args.places,
            max_length=2048 if as_text else 1024,
        ),
        initial_checkpoint=args.start or None,
        seed=args.seed,
    )


def _read(args, scaffold, as_text):
    """Return the sections of the curriculum, by name."""
    tiny, short = args.size == "tiny", args.size == "short"
    shared = dict(
        data=dict(crop="answer", buckets=4, limit=16 if tiny else 4000 if short else None),
        optimizer=dict(schedule="constant", warmup=10.0),
        objective=dict(mse_weight=0.0, ce_over="records"),
        topk=dict(k=1),
        evaluation=dict(limit=2 if tiny else 32 if short else 128, answers=0, answer_tokens=4 if tiny else 12),
    )
    sections = [section for section in READ[args.size] if section[1] <= args.rate]
    if not sections:
        raise ClaraError(f"config argument rate={args.rate}: the curriculum begins at {READ[args.size][0][1]}")
    length, rate, steps = sections[-1]
    if rate < args.rate:  # no section has it: the whole curriculum goes on to it, a short one ends with it instead
        kept = len(sections) if args.size == "full" else -1
        sections[kept:] = [(length, args.rate, steps)]
    stages = {}
    for number, (length, rate, steps) in enumerate(sections):
        kind = "autoencode" if number == 0 else "instruct"
        data: dict = dict(doc_max_length=length, compress_rate=rate)
        optimizer: dict = dict(
            steps=steps,
            batch_size=BATCH[args.size][length > 16],
            learning_rate=LEARNING_RATE[args.size][length > 16],
        )
        objective: dict = {}
        evaluation: dict = {}
        if args.size == "full":
            optimizer["accumulate"] = 1 if length < 128 else 4
            evaluation["every"] = 250
        passages = tuple(f"autoencode:{file}" for file in POOL)
        if kind == "autoencode":
            data |= dict(train=passages, weights=(3.0, 1.0))
            evaluation["data"] = (f"autoencode:{HELD_OUT}",)
            objective["scaffold"] = scaffold
        else:
            asked = QUESTIONS if short or tiny else QUESTIONS + MORE_QUESTIONS
            shares = (2.0,) if len(asked) == 1 else (1.4, 0.3, 0.2, 0.1)
            if not as_text:
                follows = () if short or tiny else (f"continue:{POOL[0]}",)
                asked, shares = (*asked, *passages, *follows), (*shares, 0.75, 0.25, *(0.25 for _ in follows))
            data |= dict(train=asked, weights=shares)
            evaluation["data"] = (f"questions:{HELD_OUT}",) + (() if as_text else (f"autoencode:{HELD_OUT}",))
            if length > 16:
                evaluation["answers"] = 2 if tiny else 32 if short else 128
        if number == 1 and scaffold and not as_text:
            objective |= dict(scaffold=1.0, scaffold_end=0.0, scaffold_steps=max(1, steps * 5 // 6))
        if number == len(sections) - 1:
            optimizer["schedule"] = "cosine_with_minimum"
        if as_text and kind == "autoencode":
            continue
        if as_text:
            data["documents"] = "text"
        fields = dict(data=data, optimizer=optimizer, objective=objective, evaluation=evaluation)
        stages[f"{kind}_{length}" + (f"_{rate}" if rate > 4 else "")] = common.merged(shared, fields)
    return stages


def _within(folder, entry):
    """Return an entry with its files in a folder, after the kind of record that it names."""
    kind, colon, file = entry.rpartition(":")
    return f"{kind}{colon}{os.path.join(folder, file)}"
