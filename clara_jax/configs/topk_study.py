"""Which estimator of the top-k is best: end_to_end from one starting point, once for each estimator and seed.

    python -m benchmarks.topk_study --workdir runs/topk_study

runs it all: the starting point (scp and instruct),

    python -m clara_jax.train --workdir runs/topk_study/start --config configs/topk_study.py

and from there end_to_end, ``:part=rank``, for each estimator. Half of the questions need two documents: "Where was the
maker of X born?" is answered by the maker's document, and shares no word with it; a quarter of the others are hard.
Arguments, as ``key=value,...``:

- ``part``: "start" or "rank";
- ``start``: the run that "rank" starts from;
- ``method``, ``temperature``, ``learn``, ``normalization``, ``marginal``, ``steps``, ``seed``: of "rank".
"""

from clara_jax.configs import common

BASE = ("base", "lora/compressor", "lora/generator", "tokens/memory")


def get_config(arg=None):
    """Return the configuration of one part; the module's docstring lists the arguments."""
    args = common.parse_arg(
        arg,
        part="start",
        start="",
        method="softsort",
        temperature=0.1,
        normalization="none",
        learn=0,
        marginal=0.0,
        steps=400,
        seed=0,
    )
    common.choose("part", args.part, dict(start=0, rank=0))
    shared = dict(
        data=dict(train=("synthetic:train",)),
        optimizer=dict(batch_size=32, learning_rate=4e-3, warmup=0.1, betas=(0.9, 0.98)),
        evaluation=dict(data=("synthetic:eval",), limit=256, answers=256, answer_tokens=4),
    )
    starting = {
        "scp": dict(optimizer=dict(steps=700), trains=BASE, evaluation=dict(every=350)),
        "instruct": dict(optimizer=dict(steps=300), trains=("lora/generator",), topk=dict(k=2)),
    }
    ranking = dict(
        optimizer=dict(steps=args.steps),
        objective=dict(marginal_weight=args.marginal),
        topk=dict(
            k=2,
            candidates=8,
            method=args.method,
            temperature=args.temperature,
            score_normalization=args.normalization,
            learn_temperature=bool(args.learn),
        ),
        evaluation=dict(every=100, controls=False),
    )
    stages = starting if args.part == "start" else {"end_to_end": ranking}
    return common.run(
        {name: common.merged(shared, fields) for name, fields in stages.items()},
        model=dict(base="scratch" if args.part == "start" else "", precision="float32"),
        scratch=dict(hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4),
        clara=dict(doc_max_length=24, compress_rate=4, lora_rank=8, lora_dropout=0.0, max_length=256),
        synthetic=dict(
            seed=5,
            world=dict(
                name_words=48,
                train_partners=36,
                eval_partners=8,
                attributes=2,
                attribute_values=16,
                phrasings=1,
            ),
            records=dict(
                train=20000,
                candidates=8,
                instruct_documents=2,
                hard_share=0.25,
                complex_share=0.5,
                paraphrase_share=0.0,
            ),
        ),
        initial_checkpoint=args.start or None,
        seed=args.seed,
        saving=dict(minutes=60.0, keep=1, best=""),
        reporting=dict(show=0, tensorboard=False, progress_seconds=5.0),
    )
