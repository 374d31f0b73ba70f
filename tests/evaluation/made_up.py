"""A small evaluation by hand: eight questions over four documents, two models, a ranker."""

import json

from clara_jax.evaluation.predictions import Prediction, PredictionFile
from clara_jax.evaluation.runner import PLAN, SUITES, prediction_path
from clara_jax.metrics.cases import Case, Suite

SCRIPT = "<script>alert(1)</script>"
PLACES = "Oslo Rouen Turin Porto Gdansk Bergen Leeds Ghent".split()


def suite(name="end_to_end/nq/oracle", cases=8):
    """Document 1 is right. Tags: half of them early, half late; every second a name."""
    return Suite(
        name,
        True,
        tuple(
            Case(
                id=f"case {i}",
                kind="question",
                question=f"Where is thing {i}? {SCRIPT}",
                documents=tuple(f"Document {i}-{j} {SCRIPT}" for j in range(4)),
                references=(place,),
                positives=(1,),
                tags={"position": "early" if i < cases / 2 else "late", "fact": "number" if i % 2 else "name"},
            )
            for i, place in enumerate(PLACES[:cases])
        ),
    )


def answers(right, ranked=False, wrong="nowhere", cases=8):
    """Predictions of which those in ``right`` have the answer; ranked ones put document 1 first there, else last."""
    found = []
    for i, place in enumerate(PLACES[:cases]):
        order = ((1, 0, 2, 3) if i in right else (0, 2, 3, 1)) if ranked else None
        found.append(
            Prediction(
                case=f"case {i}",
                answer=place if i in right else wrong,
                order=order,
                scores=(0.9, 0.5, 0.25, 0.125) if ranked else None,
                read=order[:2] if ranked else (),
                prompt_tokens=40,
                text_tokens=160 if ranked else 0,
                document_tokens=10 * (1 + i % 2) if ranked else 0,
                rates=(10.0, 20.0) if ranked else (),
                document_bytes=1000 if ranked else 0,
                answer_tokens=2,
                ended="stop",
                milliseconds={"first": 10.0, "total": 20.0 + i} if i < 2 and ranked else None,
            )
        )
    return found


def ranking(right):
    """The same of a system that only ranks."""
    return [
        Prediction(prediction.case, order=prediction.order, scores=prediction.scores)
        for prediction in answers(right, ranked=True)
    ]


def predictions():
    """A model that reads its memories, one that does not, text, a ranker."""
    return {
        "good/no_memory": answers({0}),
        "good/clara": answers({0, 1, 2, 3, 4, 5}, ranked=True),
        "good/other_memory": answers({1}),
        "idle/clara": answers({2, 3}, ranked=True),
        "idle/no_memory": answers({2, 3}),
        "idle/other_memory": answers({2, 3}),
        "base/closed_book": answers(set()),
        "base/text_oracle": answers(set(range(8))),
        "rank/random": ranking({0}),
        "rank/bm25": ranking({0, 6}),
    }


def directory(path, suites, found):
    """What an evaluation leaves on the disk: of suites by name, systems with their predictions."""
    systems = list(dict.fromkeys(system for by_system in found.values() for system in by_system))
    path.mkdir()
    (path / PLAN).write_text(json.dumps({"systems": systems}))
    (path / SUITES).write_text(json.dumps([one.fields() for one in suites]))
    for name, by_system in found.items():
        for system, some in by_system.items():
            PredictionFile(prediction_path(path, name, system)).append(some)
    return path
