"""Writes ``official_cases.json``: generated answers, and what published evaluation scripts make of them.

    python -m tests.evaluation.make_official_cases DIR

DIR holds the scripts, which are not part of this repository:

    evaluate-v1.1.py        SQuAD's, of rajpurkar.github.io/SQuAD-explorer
    hotpot_evaluate_v1.py   of github.com/hotpotqa/hotpot
    evaluate.py             evaluation/evaluate.py of github.com/apple/ml-clara

`tests.evaluation.test_official` compares our functions with the file.
"""

import ast
import json
import random
import string
import sys
from pathlib import Path
from types import SimpleNamespace

CASES = Path(__file__).with_name("official_cases.json")
COUNT, SEED = 2400, 0
CANDIDATES = 7

WORDS = (
    "Seine river Rouen Marie Curie Oslo Norway king battle 1912 12 twelve 3,000 3000 1.5 50% $20 U.S. US don't dont"
    " O'Neill St. co-founder cofounder theatre another Ann a an the The A and of in to no yes not Café café cafe"
    " Cafe\u0301 naïve Zürich ZÜRICH Straße STRASSE İstanbul ﬁnal Dvořák 北京、上海 北京 Москва “Rock ’n’ Roll” — …"
    " ¿qué? x_y C++ (band) [1] {z} `tick` ^ ~ @home"
).split()
SPECIAL = (
    "yes", "no", "noanswer", "Yes.", "No!", "YES", "NO", "no answer", "the yes", "yes yes", "yes and no", "True",
    "False", "true", "FALSE", "True.", " True", "True False", "", " ", "the", "a an the", "...", "—", "?!", "\t\n",
    "A.", "an Ann", "no\u00a0", "\u3000yes", "unknown",
)  # fmt: skip


def main(folder: str) -> None:
    judges = [_squad(folder), _hotpotqa(folder), _released(folder)]
    rng = random.Random(SEED)
    cases = [_case(rng) for _ in range(COUNT)]
    values = [{name: value for judge in judges for name, value in judge(**case).items()} for case in cases]
    lines = [json.dumps(list(values[0]))]
    for case, official in zip(cases, values, strict=True):
        rounded = [round(value, 12) for value in map(float, official.values())]
        row = [*case.values(), [int(value) if value.is_integer() else value for value in rounded]]
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    CASES.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def read() -> list[dict]:
    """The cases: "prediction", "golds", "order", "positives", and "official": values by script and metric."""
    (names, *rows) = json.loads(CASES.read_text(encoding="utf-8"))
    fields = ("prediction", "golds", "order", "positives")
    return [dict(zip(fields, row[:4], strict=True), official=dict(zip(names, row[4], strict=True))) for row in rows]


def _case(rng: random.Random) -> dict:
    golds = [_gold(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    prediction = _told_again(rng, rng.choice(golds)) if rng.random() < 0.7 else _gold(rng)
    order = rng.sample(range(CANDIDATES), CANDIDATES)
    positives = sorted(rng.sample(range(CANDIDATES), rng.randint(1, 3)))
    return {"prediction": prediction, "golds": golds, "order": order, "positives": positives}


def _gold(rng: random.Random) -> str:
    return rng.choice(SPECIAL) if rng.random() < 0.4 else _join(rng, rng.choices(WORDS, k=rng.randint(1, 4)))


def _told_again(rng: random.Random, text: str) -> str:
    """The same text with up to three changes, some of which no script notices."""
    for _ in range(rng.randint(0, 3)):
        words = text.split(" ")
        place = rng.randrange(len(words))
        change = rng.randrange(9)
        if change == 0:
            text = rng.choice((text.upper(), text.lower(), text.title()))
        elif change == 1:
            text = text + rng.choice(string.punctuation + "。”’…")
        elif change == 2:
            words.insert(place, rng.choice(("a", "an", "the", "The")))
        elif change == 3:
            words.insert(place, rng.choice(WORDS))
        elif change == 4:
            del words[place]
        elif change == 5:
            words.append(words[place])
        elif change == 6:
            rng.shuffle(words)
        elif change == 7:
            text = f"The answer is {text}."
        else:
            text = "  " + text.replace(" ", rng.choice(("  ", "\n", "\u00a0", "-")))
        if change in (2, 3, 4, 5, 6):
            text = " ".join(words)
    return text


def _join(rng: random.Random, words: list[str]) -> str:
    return "".join(word + rng.choice((" ", " ", " ", ", ", " - ", "/")) for word in words[:-1]) + words[-1]


def _squad(folder: str):
    script = _run(Path(folder, "evaluate-v1.1.py"))

    def judge(prediction, golds, **_):
        best = script.metric_max_over_ground_truths
        return {
            "squad_exact_match": best(script.exact_match_score, prediction, golds),
            "squad_f1": best(script.f1_score, prediction, golds),
        }

    return judge


def _hotpotqa(folder: str):
    sys.modules.setdefault("ujson", json)  # what the script reads its files with
    script = _run(Path(folder, "hotpot_evaluate_v1.py"))

    def judge(prediction, golds, **_):  # its questions have one reference
        return {
            "hotpotqa_exact_match": script.exact_match_score(prediction, golds[0]),
            "hotpotqa_f1": script.f1_score(prediction, golds[0])[0],
        }

    return judge


def _released(folder: str):
    # Its other parts need the packages of a GPU's machine; of these two classes, only the constructors do.
    script = _run(Path(folder, "evaluate.py"), ("EvaluationMetrics", "ResultCalculator"))
    calculator = object.__new__(script.ResultCalculator)
    calculator.metrics = object.__new__(script.EvaluationMetrics)

    def judge(prediction, golds, order, positives):
        result = {"CLaRa_normal_output": prediction, "golden_answers": golds, "topk_idx": order, "pos_index": positives}
        values = calculator.calculate_stage2_metrics([result])
        renamed = {"em": "exact_match", "acc": "cover_match"}
        return {f"released_{renamed.get(name, name)}": v for name, v in values.items() if name != "avg_output_length"}

    return judge


def _run(path: Path, classes: tuple[str, ...] = ()) -> SimpleNamespace:
    """What a script defines; with ``classes``, only these, with what they import from the standard library."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if classes:
        tree.body = [node for node in tree.body if getattr(node, "name", None) in classes or _is_standard_import(node)]
    names = {"__name__": path.stem}
    exec(compile(tree, str(path), "exec"), names)
    return SimpleNamespace(**names)


def _is_standard_import(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module in sys.stdlib_module_names
    return isinstance(node, ast.Import) and all(alias.name in sys.stdlib_module_names for alias in node.names)


if __name__ == "__main__":
    main(*sys.argv[1:])
