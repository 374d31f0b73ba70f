"""The command of `benchmarks.ten_questions`."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import benchmarks.ten_questions as ten_questions
from clara_jax import command
from clara_jax.inference.decode import Sampling
from clara_jax.input_pipeline import prompts
from clara_jax.metrics.answers import cover_match
from clara_jax.rag_pipeline import RagPipeline
from clara_jax.shipped import DEFAULT

FOLDER = Path(ten_questions.__file__).parent
DOCUMENTS = FOLDER.parents[1] / "examples" / "documents"
HOW = ("words", "memory", "both")
WAYS = ("memory", "memory and text", "text", "worst chunks", "nothing")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command.make_parser("ten_questions", ten_questions.__doc__, package="benchmarks")
    command.add_checkpoint_option(parser, DEFAULT)
    command.add_option(parser, "--k", "1 5", nargs="+", default=[1, 5])
    parser.add_argument("--how", nargs="+", choices=HOW, default=HOW, help="what finds the chunks (all three)")
    command.add_option(parser, "--output", "all answers, as JSON")
    command.add_renamed_option(parser, "--json", "--output")
    return parser


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    questions = [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        pipeline = RagPipeline.open(arguments.checkpoint, folder, create=True, rows=1)
        pipeline.add(pipeline.read([str(path) for path in sorted(DOCUMENTS.glob("*.md"))]))
        pipeline.finish()
        print(f"{len(pipeline.store)} chunks, {pipeline.store.encoding.shape[0]} memories each")
        results = [
            measured
            for how in arguments.how
            for k in arguments.k
            for way in WAYS
            if (measured := _ask(pipeline, questions, how, k, way))
        ]
    if arguments.output:
        facts = {"checkpoint": arguments.checkpoint, "platform": jax.default_backend(), "results": results}
        Path(arguments.output).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _ask(pipeline: RagPipeline, questions: list[dict[str, Any]], how: str, k: int, way: str) -> dict[str, Any]:
    """Ask all questions in one way; print and return how many were right."""
    answers, found = [], 0
    for entry in questions:
        expand = int(way == "memory and text")
        asked = pipeline.ask(entry["question"], k=k, how=how, expand=expand, sampling=Sampling(24))
        found += any(cover_match(hit.text, entry["answers"]) for hit in asked.sources)
        request = asked.request
        if way in ("text", "nothing"):
            none = np.zeros((0, *pipeline.store.encoding.shape), np.float32)
            documents = [hit.text for hit in asked.sources] if way == "text" else 0
            request = pipeline.clara.request(prompts.question(entry["question"], documents), none, Sampling(24))
        elif way == "worst chunks":
            everything = pipeline.search(entry["question"], len(pipeline.store), "memory")
            memories = pipeline.store.memories([hit.id for hit in everything[-k:]])
            request = pipeline.clara.request(prompts.question(entry["question"], len(memories)), memories, Sampling(24))
        if request is None:
            answers.append("")
            continue
        answers.append(pipeline.text(pipeline.engine.generate([request])[0].tokens))
    right = sum(cover_match(answer, entry["answers"]) for answer, entry in zip(answers, questions, strict=True))
    read = "" if way in WAYS[3:] else f", {found} found"
    print(f"{how:7} k={k}  {way:16} {right:3.0f} of {len(questions)} right{read}")
    return {"how": how, "k": k, "way": way, "right": int(right), "found": found, "answers": answers}


if __name__ == "__main__":
    command.run(main)
