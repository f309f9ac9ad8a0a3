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
from jaxattn.benchmark.cases import Case, count_operations, make_mask, random_heads
from jaxattn.benchmark.machine import count_cores, is_installed
from jaxattn.benchmark.measure import Candidate, Comparison, compiled
from jaxattn.extras import require
from jaxattn.training.memory import total_memory

OPTIONS = ("soft cap", "sinks", "alibi", "relative")
SOFT_CAP, BUCKETS = 5.0, 32


def compare_option(name: str, case: Case) -> Comparison:
    """Compare a causal call with one option; the plain call computes something else, and is there for its time."""
    arguments = option_arguments(name, case.H)
    candidates = [_candidate("jaxattn", case, arguments), _candidate("jaxattn, plain", case, {})]
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


def _candidate(label: str, case: Case, arguments: Mapping[str, Any]) -> Candidate:
    mask = make_mask(case)
    return _compiled(label, case, lambda q, k, v: dot_product_attention(q, k, v, mask, **arguments))


def _jax_nn(case: Case, bias: Array) -> Candidate:
    return _compiled(
        "jax.nn", case, lambda q, k, v: jax.nn.dot_product_attention(q, k, v, bias=bias[None], is_causal=True)
    )


def _compiled(label: str, case: Case, attend: Callable[..., Array]) -> Candidate:
    *inputs, gradient = random_heads(case)
    if not case.backward:
        return compiled(label, attend, *inputs)

    def context_and_gradients(gradient: Array, *inputs: Array) -> Any:
        context, vjp = jax.vjp(attend, *inputs)
        return context, *vjp(gradient)

    return compiled(label, context_and_gradients, gradient, *inputs)


def _torch(name: str, case: Case, arguments: Mapping[str, Any]) -> Candidate:
    """PyTorch on its own layout, `(B, H, T, D)`: the fused function where it can, else written out."""
    torch, (*inputs, gradient) = _torch_heads(case)
    inputs = [array.requires_grad_(case.backward) for array in inputs]
    causal = torch.ones(case.T, case.T, dtype=torch.bool).tril()
    if "bias" in arguments:
        bias = torch.from_numpy(np.array(arguments["bias"].array(case.T, case.T), np.float32))
        added = bias.masked_fill(~causal, -torch.inf)[None]
        fused = torch.nn.functional.scaled_dot_product_attention
        attend = lambda q, k, v: fused(q, k, v, attn_mask=added)  # noqa: E731
    else:
        sinks = torch.from_numpy(np.array(arguments["sinks"])) if name == "sinks" else None
        attend = lambda q, k, v: _written_out(torch, q, k, v, causal, arguments.get("soft_cap"), sinks)  # noqa: E731

    def run() -> Any:
        context = attend(*inputs)
        return (context, *torch.autograd.grad(context, inputs, gradient)) if case.backward else (context,)

    return Candidate("torch" if "bias" in arguments else "torch, written out", run, _as_ours)


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
    torch, (*inputs, _) = _torch_heads(case)
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

    return Candidate("torch flex", lambda: (attend(*inputs, **options),), _as_ours)


def _torch_heads(case: Case) -> tuple[Any, list[Any]]:
    """Return PyTorch, and the case's heads and gradient on its layout."""
    torch = require("torch", extra="torch")
    torch.set_num_threads(count_cores())
    arrays = (torch.from_numpy(np.array(array, np.float32)) for array in random_heads(case))
    return torch, [array.transpose(1, 2).contiguous() for array in arrays]


def _as_ours(results: Any) -> Any:
    """Return results as NumPy arrays on our layout; one array alone where there are no gradients."""
    arrays = [array.detach().transpose(1, 2).numpy() for array in results]
    return arrays if len(arrays) > 1 else arrays[0]


def option_comparisons(cases: Iterator[Case]) -> Iterator[Comparison]:
    """Prepare a comparison for each case and option."""
    for case in cases:
        for name in OPTIONS:
            yield compare_option(name, case._replace(mask="causal", keys=None, dtype="float32"))
