"""A training step of nanoGPT in PyTorch, written for this comparison from its published description.

Karpathy's nanoGPT is GPT-2's architecture with one matrix for queries, keys and values of all heads, tied embeddings,
PyTorch's fused attention, and AdamW whose weight decay leaves out biases and norms, on gradients clipped to norm 1.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxattn.benchmark.machine import count_cores
from jaxattn.extras import require
from jaxattn.models.gpt import GPTConfig


def nanogpt_step(
    config: GPTConfig, params: Any, learning_rate: Callable[[int], float]
) -> Callable[[np.ndarray], tuple[float, float]]:
    """Make a step `tokens -> (loss, gradient norm)` that starts from the parameters of a `jaxattn.GPT`.

    Raises:
        ImportError: torch is missing.
    """
    torch = require("torch", extra="torch")
    torch.set_num_threads(count_cores())
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in _weights(params, config).items()}
    matrices = [weight for weight in weights.values() if weight.dim() > 1]
    vectors = [weight for weight in weights.values() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer, number = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True), 0

    def step(tokens: np.ndarray) -> tuple[float, float]:
        nonlocal number
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number)
        loss = _loss(torch, config, weights, torch.from_numpy(tokens.astype(np.int64)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        number += 1
        return float(loss.detach()), float(norm)

    return step


def _loss(torch: Any, config: GPTConfig, weights: dict[str, Any], tokens: Any) -> Any:
    """Return the mean loss of predicting each of the tokens `(B, T + 1)` from those before it."""
    F, inputs, targets = torch.nn.functional, tokens[:, :-1], tokens[:, 1:]
    (B, T), E, H, rate = inputs.shape, config.features, config.num_heads, config.dropout_rate

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, (E,), weights[f"{name}.scale"], weights[f"{name}.bias"])

    def dense(x: Any, name: str) -> Any:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.dropout(F.embedding(inputs, weights["embedding"]) + weights["positions"][:T], rate)  # (B, T, E)
    for layer in range(config.num_layers):
        block = f"block_{layer}"
        qkv = dense(norm(x, f"{block}.attention_norm"), f"{block}.qkv").split(E, 2)
        heads = (array.view(B, T, H, E // H).transpose(1, 2) for array in qkv)  # (B, H, T, D)
        context = F.scaled_dot_product_attention(*heads, dropout_p=rate, is_causal=True)
        context = context.transpose(1, 2).reshape(B, T, E)
        x = x + F.dropout(dense(context, f"{block}.out"), rate)
        hidden = F.gelu(dense(norm(x, f"{block}.feed_forward_norm"), f"{block}.expand"), approximate="tanh")
        x = x + F.dropout(dense(hidden, f"{block}.contract"), rate)
    logits = norm(x, "norm") @ weights["embedding"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _weights(params: Any, config: GPTConfig) -> dict[str, np.ndarray]:
    """Convert parameters to torch's layout: matrices transposed, query, key and value side by side in one."""
    flat = {name: np.array(array, np.float32) for name, array in flatten_dict(params, sep=".").items()}
    weights = {"embedding": flat["embedding.embedding"], "positions": flat["positions"]}
    weights |= {name: array for name, array in flat.items() if "norm." in name}
    for block in (f"block_{layer}" for layer in range(config.num_layers)):
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            qkv = [flat[f"{block}.attention.{name}.{ours}"].T for name in ("query", "key", "value")]
            weights[f"{block}.qkv.{theirs}"] = np.concatenate(qkv)
            for name in ("attention.out", "expand", "contract"):
                weights[f"{block}.{name.removeprefix('attention.')}.{theirs}"] = flat[f"{block}.{name}.{ours}"].T.copy()
    return weights
