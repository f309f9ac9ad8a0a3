"""Attention with what today's models add to the scores, beside plain calls and PyTorch; all are causal.

A soft cap (Gemma 2), sinks (gpt-oss), ALiBi's bias, and T5's relative bias. PyTorch has a fused function for a bias
that is an array, and `flex_attention`, on CPUs without gradients and the logsumexp that sinks need; the rest is written
out.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn import biases
from jaxattn.attention import dot_product_attention
from jaxattn.benchmark.cases import Case, count_operations, make_mask
from jaxattn.benchmark.machine import is_installed
from jaxattn.benchmark.measure import Candidate, Comparison
from jaxattn.benchmark.peers import jax_candidate, torch_candidate
from jaxattn.extras import require
from jaxattn.training.memory import total_memory

OPTIONS = ("soft cap", "sinks", "alibi", "relative")
SOFT_CAP, BUCKETS = 5.0, 32


def compare_option(name: str, case: Case) -> Comparison:
    """Compare a causal call with one option; the plain call computes something else, and is there for its time."""
    arguments = option_arguments(name, case.H)
    candidates = [_ours("jaxattn", case, arguments), _ours("jaxattn, plain", case, {})]
    candidates[1] = candidates[1]._replace(deterministic=False)
    # Scores, weights and what autograd keeps, as arrays of (B, H, T, T).
    stored = 6 * 4.0 * case.B * case.H * case.T**2
    fits = stored <= total_memory() / 2
    if "bias" in arguments and fits:
        candidates.append(_jax_nn(case, arguments["bias"].array(case.T, case.T)))
    if is_installed("torch"):
        candidates += [_torch(name, case, arguments)] * fits
        candidates += [] if case.backward or name == "sinks" else [_torch_flex(name, case, arguments)]
    setting = {"direction": case.direction, **{letter: getattr(case, letter) for letter in "BTHD"}}
    return Comparison(f"causal, {name}", setting, candidates, operations=count_operations(case))


def option_arguments(name: str, H: int) -> dict[str, Any]:
    """Return the arguments of `dot_product_attention` for an option."""
    random = np.random.default_rng(0).standard_normal((BUCKETS, H)).astype(np.float32)
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "soft cap": lambda: {"soft_cap": SOFT_CAP},
        "sinks": lambda: {"sinks": jnp.asarray(random[0])},
        "alibi": lambda: {"bias": biases.Alibi.for_heads(H)},
        "relative": lambda: {"bias": biases.Relative(jnp.asarray(random), bidirectional=False)},
    }
    return makers[name]()


def _ours(label: str, case: Case, arguments: Mapping[str, Any]) -> Candidate:
    mask = make_mask(case)
    return jax_candidate(label, case, lambda q, k, v: dot_product_attention(q, k, v, mask, **arguments))


def _jax_nn(case: Case, bias: Array) -> Candidate:
    return jax_candidate(
        "jax.nn", case, lambda q, k, v: jax.nn.dot_product_attention(q, k, v, bias=bias[None], is_causal=True)
    )


def _torch(name: str, case: Case, arguments: Mapping[str, Any]) -> Candidate:
    """PyTorch's fused function where it can, else its products and softmax written out."""
    torch = require("torch", extra="torch")
    causal = torch.ones(case.T, case.T, dtype=torch.bool).tril()
    if "bias" in arguments:
        bias = torch.from_numpy(np.array(arguments["bias"].array(case.T, case.T), np.float32))
        added = bias.masked_fill(~causal, -torch.inf)[None]
        fused = torch.nn.functional.scaled_dot_product_attention
        return torch_candidate("torch", case, lambda q, k, v: fused(q, k, v, attn_mask=added))
    sinks = torch.from_numpy(np.array(arguments["sinks"])) if name == "sinks" else None
    attend = lambda q, k, v: _written_out(torch, q, k, v, causal, arguments.get("soft_cap"), sinks)  # noqa: E731
    return torch_candidate("torch, written out", case, attend)


def _written_out(torch: Any, query: Any, key: Any, value: Any, causal: Any, soft_cap: Any, sinks: Any) -> Any:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~causal, -torch.inf)
    if sinks is None:
        return scores.softmax(-1) @ value
    column = sinks[None, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value


def _torch_flex(name: str, case: Case, arguments: Mapping[str, Any]) -> Candidate:
    """PyTorch's compiled `flex_attention`, which changes scores one by one and skips masked blocks."""
    torch = require("torch", extra="torch")
    flex = require("torch.nn.attention.flex_attention", extra="torch")
    torch.compiler.reset()  # after eight programs it would stop compiling, without a word
    blocks = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, case.T, case.T, device="cpu")
    attend, options = torch.compile(flex.flex_attention), {"block_mask": blocks}
    if name == "soft cap":
        options["score_mod"] = lambda score, b, h, i, j: SOFT_CAP * torch.tanh(score / SOFT_CAP)
    else:
        # A number for each head and distance: the biases of all queries for the first key.
        table = torch.from_numpy(np.array(arguments["bias"].array(case.T, 1)[..., 0], np.float32))  # (H, T)
        options["score_mod"] = lambda score, b, h, i, j: score + table[h, i - j]

    return torch_candidate("torch flex", case, lambda q, k, v: attend(q, k, v, **options))


def option_comparisons(cases: Iterator[Case]) -> Iterator[Comparison]:
    """Prepare a comparison for each case and option."""
    for case in cases:
        for name in OPTIONS:
            yield compare_option(name, case._replace(mask="causal", keys=None, dtype="float32"))
