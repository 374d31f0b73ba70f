"""CLaRa (arXiv 2511.18659) in one file of plain JAX: a tiny model learns to compress, rank and answer.

    python -m examples.clara_in_one_file               # the smoke task: a few minutes on a CPU
    python -m examples.clara_in_one_file --steps 40 20 20

What is here: the backbone with three LoRA adapters, the compressor, the query reasoner, the straight-through top-k, the
generator, the losses of the three stages, AdamW. What is not: sharding, mixed precision, checkpoints, buckets, and
whatever makes it fast; for those read `clara_jax`. Records, prompts and tokens come from there, as numpy arrays. The
parameters are a tree of the same form, and `tests/test_one_file.py` holds losses and gradients to the library's.

Shapes: B rows, D candidates, K selected, M memory tokens, T tokens, E width, L layers, H heads, C channels of a head, R
rank of the adapters.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clara_jax.configs import smoke
from clara_jax.data import synthetic
from clara_jax.input_pipeline.batches import collate
from clara_jax.input_pipeline.buckets import shapes_for
from clara_jax.input_pipeline.encoding import Encoding, encode_records, sizes_of
from clara_jax.input_pipeline.tokenization import ClaraTokenizer
from clara_jax.input_pipeline.word_level import word_level_tokenizer
from clara_jax.training.config_parsing import resolve

LAYERS, E, H, C, F, R, M = 4, 64, 4, 16, 192, 8, 4  # the smoke model's sizes
EPS, THETA, LORA_SCALE, MSE_WEIGHT, TAU = 1e-5, 10_000.0, 2.0, 0.1, 0.1
MAPS = {  # the linear maps of a block: input and output axes
    "attention": {"q": ((E,), (H, C)), "k": ((E,), (H, C)), "v": ((E,), (H, C)), "o": ((H, C), (E,))},
    "mlp": {"gate": ((E,), (F,)), "up": ((E,), (F,)), "down": ((F,), (E,))},
}
ROLES = ("compressor", "query_reasoner", "generator")


# Parameters: one frozen base, three adapters, and the rows of the added tokens.


def init(key, vocabulary):
    """Return {"base", "lora": {role: ...}, "tokens"}; layers are stacked on a leading axis.

    A kernel keeps the scale of its input; those that write to the residual stream, of which there are 2L, are smaller
    by 1 / sqrt(2L) (GPT-2). B is zero: an adapter begins as no change (Hu et al. 2021). The table's scale and the added
    rows' are `clara_jax.model.declare`'s, which were found by measurement.
    """
    keys = iter(jax.random.split(key, 200))

    def normal(*shape, scale):
        return scale * jax.random.normal(next(keys), shape)

    def kernel(name, ins, outs):
        writes = (2 * LAYERS) ** -0.5 if name in ("o", "down") else 1.0
        return {"kernel": {name: normal(LAYERS, *ins, *outs, scale=writes * np.prod(ins) ** -0.5)}}

    def adapter(name, ins, outs):
        bound = np.prod(ins) ** -0.5
        a = jax.random.uniform(next(keys), (LAYERS, *ins, R), minval=-bound, maxval=bound)
        return {"a": a, "b": {name: jnp.zeros((LAYERS, R, *outs))}}

    def blocks(make):
        return {part: {name: make(name, *axes) for name, axes in maps.items()} for part, maps in MAPS.items()}

    norms = {name: {"scale": jnp.ones((LAYERS, E))} for name in ("attention_norm", "mlp_norm")}
    table = normal(vocabulary, E, scale=2.4 * E**-0.5)
    mean, spread = jnp.mean(table, axis=0), jnp.std(table, axis=0)
    return {
        "base": {
            "embed": {"table": table},
            "layers": blocks(kernel) | norms,
            "final_norm": {"scale": jnp.ones(E)},
        },
        "lora": {role: {"layers": blocks(adapter)} for role in ROLES},
        "tokens": {"memory": mean + normal(M, E, scale=spread), "markers": mean + normal(3, E, scale=spread)},
    }


# The backbone: a Llama of which a role is an adapter.


def norm(x, scale):
    """Divide by the root mean square over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS) * scale


def linear(x, name, weights, adapter):
    """Return x W + (alpha / R) x A B: contract x [B, T, ins...] to [B, T, outs...]."""
    a, axes = adapter["a"], adapter["a"].ndim - 1
    low = jnp.tensordot(x, a, axes)
    return jnp.tensordot(x, weights["kernel"][name], axes) + LORA_SCALE * jnp.tensordot(low, adapter["b"][name], 1)


def rotate(x, positions):
    """Rotate pairs (i, i + C/2) of x [B, T, H, C] by angles that grow with the position (RoPE)."""
    angles = positions[..., None] * THETA ** (-jnp.arange(0, C, 2) / C)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def forward(params, role, x, mask):
    """Return last-layer states [B, T, E] of embeddings; ``mask`` bool [B, T] says what is attended."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)  # padding does not count
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    bias = jnp.where(causal & mask[:, None, :], 0.0, -1e9)[:, None]  # [B, 1, T, T]

    def block(x, layer):
        weights, adapter = layer
        kernels, low = weights["attention"], adapter["attention"]
        y = norm(x, weights["attention_norm"]["scale"])
        q, k, v = (linear(y, name, kernels[name], low[name]) for name in "qkv")
        q, k = rotate(q, positions), rotate(k, positions)
        attended = jax.nn.softmax(jnp.einsum("BTHC,BSHC->BHTS", q, k) * C**-0.5 + bias, axis=-1)
        x = x + linear(jnp.einsum("BHTS,BSHC->BTHC", attended, v), "o", kernels["o"], low["o"])
        kernels, low = weights["mlp"], adapter["mlp"]
        y = norm(x, weights["mlp_norm"]["scale"])
        gate, up = (linear(y, name, kernels[name], low[name]) for name in ("gate", "up"))
        return x + linear(jax.nn.silu(gate) * up, "down", kernels["down"], low["down"]), None

    x, _ = jax.lax.scan(block, x, (params["base"]["layers"], params["lora"][role]["layers"]))
    return norm(x, params["base"]["final_norm"]["scale"])


def table(params):
    """Return the rows of all tokens [V + M + 3, E]: the base's, the memory tokens', the markers'."""
    return jnp.concatenate([params["base"]["embed"]["table"], params["tokens"]["memory"], params["tokens"]["markers"]])


# The method.


def encode(params, role, texts):
    """Return memories [N, M, E] of N texts that end with the M memory tokens, and the mean state at their other tokens.

    Section 2.2: a memory is the last-layer state at its memory token.
    """
    mask = texts.segment_ids > 0
    states = forward(params, role, table(params)[texts.ids], mask)
    text = mask[:, :-M, None]
    return states[:, -M:], jnp.sum(states[:, :-M] * text, axis=1) / jnp.maximum(jnp.sum(text, axis=1), 1)


def compress(params, batch):
    """Return the documents' memories [B, D, M, E], and L_MSE of each [B, D]: mean text state against mean memory."""
    count = batch.documents.ids.shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.documents)
    memory, text = encode(params, "compressor", flat)
    mse = jnp.mean((text - memory.mean(axis=1)) ** 2, axis=-1).reshape(count)
    return memory.reshape(*count, M, E), jnp.where(batch.document_valid, mse, 0)


def straight_through_top_k(scores, k, valid):
    """Return Z [B, K, D]: the k best as zeros and ones forward, the relaxed sort's gradient backward.

    NeuralSort (Grover et al. 2019) instead of Algorithm 1's softmax, as in `configs/smoke.py`:
    p_j = softmax(((n + 1 - 2j) s - sum_b |s - s_b|) / tau).
    """
    s = jnp.where(valid, scores / TAU, 0)
    _, best = jax.lax.top_k(jnp.where(valid, s, -jnp.inf), k)
    hard = jax.nn.one_hot(best, s.shape[1])
    n, j = jnp.sum(valid, axis=1)[:, None, None], 1 + jnp.arange(k)[:, None]
    distances = jnp.sum(jnp.abs(s[:, :, None] - s[:, None, :]) * valid[:, None, :], axis=-1)
    logits = (n + 1 - 2 * j) * s[:, None] - distances[:, None]
    soft = jax.nn.softmax(jnp.where(valid[:, None], logits, -1e9), axis=-1)
    return hard + soft - jax.lax.stop_gradient(soft)


def language_model_loss(params, prompt, memories):
    """Return L_CE = -sum_t log p(a_t | I, M_1..k, a_<t) and the number of labels, memories [B, K, M, E] in place."""
    x, index = table(params)[prompt.ids], prompt.memory_index[..., None]
    placed = jnp.take_along_axis(memories.reshape(len(x), -1, E), jnp.maximum(index, 0), axis=1)
    states = forward(params, "generator", jnp.where(index >= 0, placed, x), prompt.segment_ids > 0)
    span = prompt.labels.shape[1]  # the labels are those of the last positions; the one before predicts each
    logits = states[:, -span - 1 : -1] @ table(params).T
    labelled = prompt.labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(prompt.labels, 0))
    return jnp.sum(losses * labelled), jnp.sum(labelled)


def compression_loss(params, batch, k):
    """Return L_CE + lambda L_MSE (stages scp and instruct): all documents are compressed and read."""
    memories, mse = compress(params, batch)
    ce, count = language_model_loss(params, batch.prompt, memories)
    return ce / count + MSE_WEIGHT * jnp.sum(mse) / jnp.maximum(jnp.sum(batch.document_valid), 1)


def end_to_end_loss(params, batch, k):
    """Return L_CE through ranking and selection (section 3): no relevance labels, and a frozen compressor."""
    documents = jax.lax.stop_gradient(compress(params, batch)[0])
    query, _ = encode(params, "query_reasoner", batch.query)
    q, d = query.reshape(len(query), 1, -1), documents.reshape(*documents.shape[:2], -1)
    lengths = jnp.linalg.norm(q, axis=-1) * jnp.sqrt(jnp.maximum(jnp.sum(d * d, axis=-1), 1e-24))
    scores = jnp.sum(q * d, axis=-1) / jnp.maximum(lengths, 1e-8)  # s_i = cos(q, M_i)
    chosen = straight_through_top_k(scores, k, batch.document_valid)
    ce, count = language_model_loss(params, batch.prompt, jnp.einsum("BKD,BDME->BKME", chosen, documents))
    return ce / count


LOSSES = {"scp": compression_loss, "instruct": compression_loss, "end_to_end": end_to_end_loss}


# Training.


def train(stage, params, batches):
    """Train a stage on batches, print some of its losses, and return the parameters and all losses."""
    trained = [tuple(path.split("/")) for path in stage.subtrees]

    def label(path, leaf):
        names = tuple(entry.key for entry in path)
        return "trained" if any(names[: len(part)] == part for part in trained) else "frozen"

    steps, config = len(batches), stage.optimizer
    peak, warmup = config.learning_rate, config.warmup_steps(steps)
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    rate = optax.join_schedules([rise, optax.cosine_decay_schedule(peak, steps - warmup)], [warmup])
    adamw = optax.adamw(rate, *config.betas, eps=config.eps, weight_decay=config.weight_decay)
    optimizer = optax.multi_transform(
        {"trained": optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw), "frozen": optax.set_to_zero()},
        jax.tree.map_with_path(label, params),
    )

    @jax.jit
    def step(params, state, batch):
        loss, gradient = jax.value_and_grad(LOSSES[stage.kind])(params, batch, stage.topk.k)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for number, batch in enumerate(batches, 1):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
        if number % max(1, steps // 10) == 0 or number == steps:
            print(f"{stage.kind} {number}/{steps}  loss {losses[-1]:.4f}", flush=True)
    return params, losses


def make_tokenizer(config):
    """Return a tokenizer with a token for each word of the synthetic world, and the memory tokens."""
    words = word_level_tokenizer(synthetic.vocabulary(config.synthetic))
    return ClaraTokenizer(words, config.clara.doc_max_length, M, max_length=config.clara.max_length)


class Batches:
    """The batches of a stage: ``steps`` of them, epochs in random order."""

    def __init__(self, config, stage, tokenizer, steps):
        encoding = Encoding(stage.kind, stage.topk.k, stage.topk.candidates if stage.ranks else None)
        records = synthetic.records(config.synthetic, stage.kind, "train")
        self.examples, self.tokenizer = encode_records(records, tokenizer, encoding), tokenizer
        self.shapes = shapes_for(sizes_of(self.examples), tokenizer)
        batch_size = stage.optimizer.batch_size
        epochs = -(-steps * batch_size // len(records))
        rng = np.random.default_rng(config.seed)
        order = np.concatenate([rng.permutation(len(records)) for _ in range(epochs)])
        self.rows = order[: steps * batch_size].reshape(steps, batch_size)

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        for rows in self.rows:
            yield collate([self.examples[row] for row in rows], self.shapes, self.tokenizer)


def main():
    """Train the three stages of the smoke task."""
    parser = argparse.ArgumentParser(description="Train CLaRa on the smoke task, in plain JAX.")
    parser.add_argument(
        "--steps", type=int, nargs=3, help="of scp, instruct, end_to_end; default as in configs/smoke.py"
    )
    steps = parser.parse_args().steps
    config = resolve(smoke.get_config())
    tokenizer = make_tokenizer(config)
    params = init(jax.random.key(config.seed), tokenizer.vocab_size)
    for stage, count in zip(config.stages, steps or [stage.optimizer.steps for stage in config.stages], strict=True):
        if stage.kind == "end_to_end":  # the query reasoner begins as a copy of the compressor
            params["lora"]["query_reasoner"] = params["lora"]["compressor"]
        params, _ = train(stage, params, Batches(config, stage, tokenizer, count))


if __name__ == "__main__":
    main()
