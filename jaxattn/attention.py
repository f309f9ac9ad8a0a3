"""Attention with many heads: check the arguments, choose a kernel, run it, explain the choice."""

from typing import Any, Literal, Unpack, overload

from jax import Array
from jaxtyping import Float

from jaxattn.biases import Bias
from jaxattn.kernels import dense, transforms
from jaxattn.kernels.call import AttentionCall, Implementation, Options, checked_call
from jaxattn.kernels.choice import choose, explain, has_few_scores_per_head
from jaxattn.kernels.logits import log_sum_exp

Query = Float[Array, "*batch T H D"]
Key = Float[Array, "*batch S K D"]
Value = Float[Array, "*batch S K D_v"]


@overload
def dot_product_attention(
    query: Query,
    key: Key,
    value: Value,
    mask: Any = None,
    *,
    return_weights: Literal[False] = False,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Array: ...
@overload
def dot_product_attention(
    query: Query, key: Key, value: Value, mask: Any = None, *, return_weights: Literal[True], **options: Unpack[Options]
) -> tuple[Array, Array]: ...
@overload
def dot_product_attention(
    query: Query, key: Key, value: Value, mask: Any = None, *, return_lse: Literal[True], **options: Unpack[Options]
) -> tuple[Array, Array]: ...
@overload
def dot_product_attention(
    query: Query,
    key: Key,
    value: Value,
    mask: Any = None,
    *,
    return_weights: bool = False,
    return_lse: bool = False,
    **options: Unpack[Options],
) -> Array | tuple[Array, ...]: ...
def dot_product_attention(
    query: Query,
    key: Key,
    value: Value,
    mask: Any = None,
    *,
    scale: float | Array | None = None,
    bias: Float[Array, "..."] | Bias | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, "H"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    return_weights: bool = False,
    return_lse: bool = False,
    implementation: Implementation | None = None,
) -> Array | tuple[Array, ...]:
    """Attend with all heads at once: each query averages the values with weights softmax(scale · query · key + bias).

    A query that may attend to nothing gets 0. Scores, softmax and sums are in float32 or wider.

    Args:
        query: `(..., T, H, D)`: T queries, H heads of width D.
        key: `(..., S, K, D)`: S keys, K KV heads, each for H / K neighbouring query heads. K = H is multi-head
            attention, K = 1 multi-query attention, anything between grouped-query attention.
        value: `(..., S, K, D_v)`.
        mask: which keys each query may attend to: one of `jaxattn.masks`, for all heads, or a boolean array that
            broadcasts to `(..., H, T, S)`, True = may attend. None masks nothing.
        scale: factor on the dot products; None is 1 / √D.
        bias: added to the scaled and capped scores: an array that broadcasts to `(..., H, T, S)`, or one of
            `jaxattn.biases`, which depend on positions and take memory linear in the tokens.
        soft_cap: keeps the scaled scores between -soft_cap and soft_cap: soft_cap · tanh(scores / soft_cap).
        sinks: `(H,)`, a logit for each query head: a key to which every query attends, with a value of 0, so that the
            weights of the other keys sum to less than 1.
        dropout_rate: share of the weights that are dropped, in [0, 1).
        dropout_key: PRNG key for dropout; each head and example drops different entries.
        return_weights: return the weights `(..., H, T, S)` too, before dropout.
        return_lse: return the natural logsumexp `(..., H, T)` too, the logarithm of what the softmax divides by, in
            float32 or wider. It counts the sinks; without any, it is -inf for queries that may attend to nothing. With
            it, the contexts of two sets of keys combine: weigh them by softmax([lse_1, lse_2]), with sinks in one.
        implementation: the kernel, all with equal results: "dense" stores all weights; "blockwise" has memory linear
            in the tokens, and so has "native", in C++ for CPUs; "cudnn" is NVIDIA's. None chooses;
            `explain_implementation` says which and why.

    Returns:
        The context `(..., T, H, D_v)` in the type of `query`, or a tuple `(context, weights, lse)` of what was asked
        for. With implementation="dense" it has derivatives of all kinds, otherwise at least first derivatives in
        reverse mode.

    Raises:
        TypeError: an input is not floating point, types differ, or the mask is not boolean.
        ValueError: shapes do not fit, the rate is outside [0, 1), the dropout key is missing, or the implementation
            does not support the call.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxattn import dot_product_attention, masks
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))  # B=2, T=5, H=4, D=8
        >>> dot_product_attention(query, key, value, masks.Causal()).shape
        (2, 5, 4, 8)

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2; Ainslie et al. 2023, "GQA"; Gemma Team 2024,
        "Gemma 2" (soft cap); Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
    """
    call = checked_call(
        query,
        key,
        value,
        mask,
        scale=scale,
        bias=bias,
        soft_cap=soft_cap,
        sinks=sinks,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        return_weights=return_weights,
        return_lse=return_lse,
        implementation=implementation,
    )
    if return_weights:
        scores, weights, _, context = attend_with_steps(call)
        return (context, weights, log_sum_exp(call, scores)) if return_lse else (context, weights)
    context, lse = _attend(call)
    return context if lse is None else (context, lse)


def explain_implementation(*args: Any, **options: Any) -> str:
    """Say which kernel `dot_product_attention` would run with the same arguments, and why not the others.

    The values of the arrays do not matter. The first line names the kernel that runs; each other line says why
    another does not.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxattn import explain_implementation, masks
        >>> heads = jnp.ones((1, 2048, 8, 64))
        >>> print(explain_implementation(heads, heads, heads, masks.Causal()).splitlines()[0])
        native runs: it is the fastest on a CPU
    """
    return explain(checked_call(*args, **options))


def attend(call: AttentionCall) -> Array:
    """Compute the context of a checked call."""
    return _attend(call)[0]


def _attend(call: AttentionCall) -> tuple[Array, Array | None]:
    """Compute the context, and the logsumexp if the call asks for it."""
    # This choice depends on neither the batch nor the platform: run plain JAX, with all derivatives.
    if choose(call) == "dense" and (call.implementation == "dense" or has_few_scores_per_head(call)):
        steps = dense.attend(call)
        return steps.context, log_sum_exp(call, steps.scores) if call.return_lse else None
    context, *lse = transforms.attend(call)
    return context, lse[0] if lse else None


def attend_with_steps(call: AttentionCall) -> dense.Steps:
    """Compute every step of a checked call that returns weights."""
    choose(call)
    return dense.attend(call)
