"""The released PyTorch code's side of `benchmarks.against_released`, which starts this file with another interpreter.

    PYTHON released_driver.py CODE CHECKPOINT THREADS K

Reads requests from standard input and answers each on standard output, one JSON object a line. ``CODE`` is a checkout
of the released code; its model and the function that makes its batches are imported from it, and are used as in its
training script. Nothing of this repository can be imported here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

MODEL, BATCHES = "openrlhf/models/modeling_clara.py", "openrlhf/datasets/sft_dataset.py"
MSE_WEIGHT, CLIP, RATE = 0.1, 1.0, 1e-4  # of its training script and the paper's Table 10
PROBE = (512, 576, 1536)  # rows, width and outputs of a product of SmolLM2's size


def load(code: Path) -> tuple[Any, Any]:
    """Import the modules of the model and of the batches from their files: their packages' others need CUDA."""
    sys.path.insert(0, str(code))
    # The second file imports this one name from a package that imports DeepSpeed; nothing that is called here uses it.
    unused = types.ModuleType("openrlhf.utils.utils")
    unused.__dict__["zero_pad_sequences"] = None
    sys.modules |= {"openrlhf.utils": types.ModuleType("openrlhf.utils"), "openrlhf.utils.utils": unused}
    modules = []
    for name in (MODEL, BATCHES):
        spec = importlib.util.spec_from_file_location(Path(name).stem, code / name)
        assert spec is not None and spec.loader is not None  # a .py file has both
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        modules.append(module)
    model, batches = modules
    return model, batches


class Released:
    """Models of the released code, each made when it is first asked for.

    Args:
      code: the checkout.
      checkpoint: a folder in the released format, with its base beside it or at the place that its configuration names.
    """

    def __init__(self, code: Path, checkpoint: Path, threads: int, k: int):
        import torch  # pyright: ignore[reportMissingImports] - of the other environment

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.checkpoint, self.k = torch, checkpoint, k
        self.modeling, self.batching = load(code)
        self.config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        beside = checkpoint / self.config["decoder_model_name"]
        self.config["decoder_model_name"] = str(beside) if beside.is_dir() else self.config["decoder_model_name"]
        self._models: dict[tuple[str, ...], Any] = {}
        self._steps: dict[tuple[str, ...], Any] = {}

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that it runs on."""
        import peft  # pyright: ignore[reportMissingImports] - of the other environment
        import transformers

        return {"torch": self.torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}

    def rates(self, seconds: float = 0.5) -> dict[str, float]:
        """Return the FLOP/s of a matrix product, by dtype."""
        torch, (rows, width, outputs), found = self.torch, PROBE, {}
        for name in ("float32", "bfloat16"):
            x, w = (torch.randn(shape, width).to(getattr(torch, name)) for shape in (rows, outputs))
            torch.nn.functional.linear(x, w)
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                torch.nn.functional.linear(x, w)
                count += 1
            found[name] = 2 * rows * width * outputs * count / (time.perf_counter() - began)
        return found

    def step(self, stage: str, precision: str, records: list, length: int, true_length: bool = False) -> dict[str, Any]:
        """Run a training step on all of the records; "seconds" leaves out making the batch.

        Args:
          stage: the released code's name of the stage, "stage1" or "stage2".
          precision: "float32" or "bfloat16".
          records: (documents, question or questions, answer or answers, "qa", indices of positive documents) each.
          length: where prompts are cut, and the length that questions are padded to.
          true_length: take from the questions the padding that all of them have.
        """
        key = (stage, precision, f"true length: {true_length}")  # each row trains another model
        if key not in self._steps:
            model = self._model(*key)
            collate = self.batching.make_collate_fn(
                model, enc_max_len=self.config["doc_max_length"], dec_max_len=length, qa_loss=True
            )
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = self.torch.optim.AdamW(trained, lr=RATE, fused=True)
            batch = collate([tuple(record) for record in records])
            if true_length:
                first = int(batch["query_attention_mask"].any(0).nonzero()[0])
                for name in ("query_input_ids", "query_attention_mask"):
                    batch[name] = batch[name][:, first:].contiguous()
            self._steps[key] = model, batch, trained, optimizer
        model, batch, trained, optimizer = self._steps[key]
        weight = MSE_WEIGHT if stage == "stage1" else 0.0
        model.train()
        began = time.perf_counter()
        loss, outputs = model(batch=batch)
        total = loss + weight * outputs["mse_loss"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        value = float(total)
        seconds = time.perf_counter() - began
        query = batch.get("query_input_ids")
        return {
            "seconds": seconds,
            "loss": value,
            "trained": sum(parameter.numel() for parameter in trained),
            "question width": None if query is None else query.shape[1],
        }

    def compress(self, precision: str, documents: list[str], file: str) -> dict[str, Any]:
        """Compress documents to memories, and write them to a file of numpy's, float32 [n, M, E]."""
        model = self._model("stage2", precision, "read").eval()
        began = time.perf_counter()
        with self.torch.no_grad():
            memories, _ = model.compress_documents(documents)
        seconds = time.perf_counter() - began
        import numpy as np

        np.save(file, memories.float().numpy())
        return {"seconds": seconds}

    def save(self, precision: str, folder: str) -> dict[str, Any]:
        """Write the model that compresses as its training script does, into a folder."""
        self._model("stage2", precision, "read").save_pretrained(folder)
        return {}

    def question(self, precision: str, question: str, documents: list[str], tokens: int) -> dict[str, Any]:
        """Answer with so many tokens from documents that are compressed and ranked for it."""
        model = self._model("stage2", precision, "read")
        model.decoder.generation_config.eos_token_id = None
        began = time.perf_counter()
        texts, chosen = model.generate_from_questions([question], max_new_tokens=tokens, documents=[documents])
        return {"seconds": time.perf_counter() - began, "text": texts[0], "chosen": chosen[0].tolist()}

    def _model(self, stage: str, precision: str, use: str) -> Any:
        """Return a model of a stage, with the checkpoint's weights."""
        key = (stage, precision, use)
        if key not in self._models:
            self._loading_as(precision)
            if stage == "stage1":  # begins from a base: its adapters are fresh, and the embedding table is trained
                config = {name: value for name, value in self.config.items() if name not in ("model_type", "auto_map")}
                model = self.modeling.CLaRa(
                    self.modeling.CLaRaConfig(**config | {"training_stage": stage, "generation_top_k": 1})
                )
                tables = self.torch.load(self.checkpoint / "decoder_first_last_layers.pth", weights_only=True)
                model.decoder.load_state_dict(tables, strict=False)
            else:
                base = self.config["decoder_model_name"]
                model = self.modeling.CLaRa.from_pretrained(
                    str(self.checkpoint), training_stage=stage, decoder_model_name=base, generation_top_k=self.k
                )
            self._models[key] = model
        return self._models[key]

    def _loading_as(self, precision: str) -> None:
        """Have the base read in a dtype: without a GPU the code takes bfloat16, whatever is asked for."""
        from transformers import AutoModelForCausalLM

        dtype = getattr(self.torch, precision)

        def from_pretrained(name: str, **options: Any) -> Any:
            return AutoModelForCausalLM.from_pretrained(name, **options | {"torch_dtype": dtype})

        self.modeling.AutoModelForCausalLM = types.SimpleNamespace(from_pretrained=from_pretrained)


def main() -> None:
    """Answer requests until standard input ends."""
    # The released code's prints go to standard error: standard output is for answers.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    side = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            side = side or Released(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
            answer = getattr(side, request.pop("do"))(**request)
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
