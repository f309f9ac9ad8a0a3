"""The four stages of self-attention as Flax modules, each a small step from the one before.

    1   SimpleSelfAttention         each token's context is an average of all tokens
    2   SelfAttention               new: query, key and value projections, scaled scores
    3   CausalAttention             new: a causal mask, and dropout on the weights
    4a  MultiHeadAttentionWrapper   new: several heads, each computed on its own
    4b  MultiHeadAttention          new: all heads in one computation, and an output projection

All modules are called in the same way, on one sequence or any batch:

    output = module.apply(variables, x, deterministic=True, dropout_key=None, return_weights=False)

    x               (..., T, d_in)       token vectors
    deterministic   True                 dropout is off; False turns it on
    dropout_key     None                 PRNG key for dropout; None draws from the stream rngs={"dropout": key}
    return_weights  False                True returns (output, weights), the weights before dropout
    output          (..., T, features)   in the type of x
    weights         (..., T, T)          (..., num_heads, T, T) in stage 4

`dropout_rate` is the share of the weights that are dropped, in [0, 1). `use_bias` adds a bias to the query, key and
value projections. Each module sows its steps into the collection "intermediates". The sections are those of chapter 3
of *Build a Large Language Model (From Scratch)*; each stage reproduces the numbers that the book prints.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.attention import dot_product_attention
from jaxattn.checks import as_tokens, check_num_heads, check_rate, features_per_head
from jaxattn.functional import attention_scores, attention_weights, context_vectors, dropout
from jaxattn.kernels import dense
from jaxattn.kernels.call import Implementation, checked_call
from jaxattn.masks import Causal

Tokens = Float[Array, "*batch T d_in"]
Output = Array | tuple[Array, Array]


class SimpleSelfAttention(nn.Module):
    """Stage 1 (section 3.3): softmax(x xᵀ) x. The tokens themselves are queries, keys and values."""

    @nn.compact
    def __call__(
        self, x: Tokens, deterministic: bool = True, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Output:
        x = as_tokens("x", x)
        scores = attention_scores(x, x)  # (..., T, T)
        weights = attention_weights(scores)
        context = context_vectors(weights, x)  # (..., T, d_in)
        sow(self, scores=scores, weights=weights, context=context)
        return (context, weights) if return_weights else context


class SelfAttention(nn.Module):
    """Stage 2 (section 3.4): softmax(Q Kᵀ / √features) V. New: Q, K and V are trainable projections of x."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Tokens, deterministic: bool = True, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Output:
        query, key, value = project(as_tokens("x", x), self.features, self.use_bias)  # (..., T, features) each
        scores = attention_scores(query, key)  # (..., T, T)
        weights = attention_weights(scores, scale=self.features**-0.5)
        context = context_vectors(weights, value)  # (..., T, features)
        sow(self, queries=query, keys=key, values=value, scores=scores, weights=weights, context=context)
        return (context, weights) if return_weights else context


class CausalAttention(nn.Module):
    """Stage 3 (section 3.5): dropout(softmax(mask(Q Kᵀ) / √features)) V.

    New: a causal mask, so that no token attends to a later one, and dropout. The mask is computed, not a parameter.
    """

    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Tokens, deterministic: bool = True, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Output:
        query, key, value = project(as_tokens("x", x), self.features, self.use_bias)  # (..., T, features) each
        scores = attention_scores(query, key)  # (..., T, T)
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = attention_weights(scores, mask, scale=self.features**-0.5)
        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        kept_weights = weights if dropout_key is None else dropout(weights, self.dropout_rate, dropout_key)
        context = context_vectors(kept_weights, value)  # (..., T, features)
        sow(self, queries=query, keys=key, values=value, scores=scores)
        sow(self, weights=weights, kept_weights=kept_weights, context=context)
        return (context, weights) if return_weights else context


class MultiHeadAttentionWrapper(nn.Module):
    """Stage 4a (section 3.6.1): concat(head_0(x), head_1(x), ...). New: several heads, each a `CausalAttention`.

    `features` is the width of one head, as in the book; the output is num_heads · features wide.
    """

    num_heads: int
    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Tokens, deterministic: bool = True, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Output:
        check_num_heads(self.num_heads)
        head_keys = [None] * self.num_heads if dropout_key is None else jax.random.split(dropout_key, self.num_heads)
        contexts, weights = [], []
        for number, head_key in enumerate(head_keys):
            head = CausalAttention(self.features, self.dropout_rate, self.use_bias, name=f"heads_{number}")
            context, head_weights = head(x, deterministic, head_key, return_weights=True)
            contexts.append(context)
            weights.append(head_weights)
        output = jnp.concatenate(contexts, axis=-1)  # (..., T, num_heads * features)
        return (output, jnp.stack(weights, axis=-3)) if return_weights else output


class MultiHeadAttention(nn.Module):
    """Stage 4b (section 3.6.2): concat(heads) W_out + b_out. New: all heads at once, and a projection that mixes them.

    `features` is the width of all heads together and of the output, so each head is features / num_heads wide. The
    columns of the query, key and value kernels are those of the heads, side by side. `implementation` names the kernel
    of `dot_product_attention`; None chooses.
    """

    num_heads: int
    features: int
    dropout_rate: float = 0.0
    use_bias: bool = False
    implementation: Implementation | None = None

    @nn.compact
    def __call__(
        self, x: Tokens, deterministic: bool = True, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Output:
        x = as_tokens("x", x)
        D = features_per_head(self.num_heads, self.features)
        # Split: view first, (..., T, features) -> (..., T, H, D). A transpose first would mix tokens and features.
        query, key, value = (
            array.reshape(*x.shape[:-1], self.num_heads, D) for array in project(x, self.features, self.use_bias)
        )
        # Attend: the steps of `functional.py` for all heads, as `kernels/dense.py` spells them out.
        dropout_key = choose_dropout_key(self, self.dropout_rate, deterministic, dropout_key)
        options: Any = {"dropout_rate": 0.0 if dropout_key is None else self.dropout_rate, "dropout_key": dropout_key}
        attended = dot_product_attention(
            query, key, value, Causal(), **options, return_weights=return_weights, implementation=self.implementation
        )
        context, weights = attended if isinstance(attended, tuple) else (attended, None)  # (..., T, H, D)
        sow_steps(self, query, key, value, Causal(), **options)
        # Join: (..., T, H, D) -> (..., T, features)
        output = nn.Dense(self.features, dtype=x.dtype, name="out")(context.reshape(*x.shape[:-1], self.features))
        return output if weights is None else (output, weights)


def parallel_from_stacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the parameters of `MultiHeadAttentionWrapper(H, D)` to those of an equal `MultiHeadAttention(H, H * D)`.

    The heads' kernels stand side by side, and the output projection, which stacked heads lack, is the identity.
    """
    heads = [params[f"heads_{i}"] for i in range(len(params)) if f"heads_{i}" in params]
    if not heads or len(heads) != len(params):
        raise ValueError(
            f"params holds {sorted(params)}, but a MultiHeadAttentionWrapper has heads_0, heads_1, …: "
            'pass variables["params"] of one'
        )
    parallel = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *heads)
    width, dtype = parallel["value"]["kernel"].shape[-1], parallel["value"]["kernel"].dtype
    return {**parallel, "out": {"kernel": jnp.eye(width, dtype=dtype), "bias": jnp.zeros(width, dtype)}}


def project(x: Array, features: int, use_bias: bool) -> list[Array]:
    """Return query, key and value `(..., T, features)`, from three dense layers of the module that calls this."""
    if features < 1:
        raise ValueError(f"features={features} must be at least 1: it is the width of the output vectors")
    return [nn.Dense(features, use_bias, dtype=x.dtype, name=name)(x) for name in ("query", "key", "value")]


def choose_dropout_key(module: nn.Module, rate: float, deterministic: bool, dropout_key: Array | None) -> Array | None:
    """Return `dropout_key`, or a key of the module's "dropout" stream; None where dropout is off."""
    if check_rate(rate) == 0 or deterministic:
        return None
    if dropout_key is not None:
        return dropout_key
    if module.has_rng("dropout"):
        return module.make_rng("dropout")
    raise ValueError(
        f"{type(module).__name__} with dropout_rate={rate} and deterministic=False drops weights at random and has no "
        "key: write module.apply(variables, x, deterministic=False, dropout_key=jax.random.key(0)), "
        'or rngs={"dropout": jax.random.key(0)}'
    )


def sow(module: nn.Module, **steps: Array) -> None:
    """Store steps in the collection "intermediates", for callers that collect it with `mutable=["intermediates"]`."""
    for name, step in steps.items():
        module.sow("intermediates", name, step)


def sow_steps(module: nn.Module, query: Array, key: Array, value: Array, mask: Any, **options: Any) -> None:
    """Where "intermediates" are collected, compute all steps of attention with many heads, and store them."""
    if module.is_mutable_collection("intermediates"):
        steps = dense.attend(checked_call(query, key, value, mask, **options))
        sow(module, queries=query, keys=key, values=value, **steps._asdict())
