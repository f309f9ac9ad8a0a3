"""The numbers that the quiz's explanations quote: one program of the library's functions, compiled and run when asked."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxattn import CausalAttention, masks
from jaxattn.exercises.quiz.question import book
from jaxattn.functional import (
    attention_scores,
    attention_weights,
    context_vectors,
    dropout,
    renormalized_weights,
)


@functools.cache
def computed() -> dict[str, np.ndarray]:
    """Return all numbers by name."""
    x, query, key = (book()[name] for name in ("x", "query", "key"))
    return jax.device_get(jax.jit(_compute)(x, query, key, np.int32(0)))


def _compute(x: Array, query: Array, key: Array, seed: Array) -> dict[str, Array]:
    # The seed is an argument, so that the compiler does not evaluate all that is random.
    return {**_of_the_book(x, query, key), **_softmax(), **_scaling(seed), **_dropout(seed), **_layers(seed)}


def _of_the_book(x: Array, query: Array, key: Array) -> dict[str, Array]:
    scores = attention_scores(x, x)
    weights = attention_weights(scores)
    return {
        "scores": scores,
        "projected scores": attention_scores(x @ query, x @ key),
        "weights": weights,
        "softmax over queries": jax.nn.softmax(scores, axis=0),
        "context": context_vectors(weights, x),
        "masked weights": jnp.tril(weights),
        "softmax of masked weights": jax.nn.softmax(jnp.tril(weights)),
        "renormalized": renormalized_weights(scores, masks.Causal()),
        "renormalized without the last": renormalized_weights(attention_scores(x, x.at[5].set(0)), masks.Causal()),
    }


def _softmax() -> dict[str, Array]:
    scores = jnp.array([[1.0, 2.0, 3.0]])
    return {
        "before 100": attention_weights(scores)[0],
        "after 100": attention_weights(scores + 100)[0],
        "scores times mask": jax.nn.softmax(jnp.array([2.0, 0.0, 0.0])),
        "softmax of −∞": jax.nn.softmax(jnp.full(3, -jnp.inf)),
        "softmax of -1e30": jax.nn.softmax(jnp.full(3, -1e30)),
        "weights of a masked row": attention_weights(jnp.zeros((1, 3)), jnp.zeros((1, 3), bool))[0],
        "window": masks.SlidingWindow(3).array(6, 6).astype(jnp.int32),
    }


def _scaling(seed: Array) -> dict[str, Array]:
    key, query = jax.random.normal(jax.random.key(seed), (2, 8, 512))
    scores = attention_scores(query, key)
    return {
        "wide scores": scores,
        "largest weight": attention_weights(scores).max(-1).mean(),
        "largest weight, scaled": attention_weights(scores, scale=512**-0.5).max(-1).mean(),
    }


def _dropout(seed: Array) -> dict[str, Array]:
    return {
        "1000 ones": dropout(jnp.ones((1, 1000)), 0.2, jax.random.key(seed)),
        "four rows": dropout(jnp.full((4, 8), 1 / 8), 0.5, jax.random.key(seed + 1)),
        "one key": dropout(jnp.ones(12), 0.5, jax.random.key(seed + 7)),
        "another key": dropout(jnp.ones(12), 0.5, jax.random.key(seed + 8)),
    }


def _layers(seed: Array) -> dict[str, Array]:
    module: Any = CausalAttention(features=2, dropout_rate=0.5)
    variables = {"params": {name: {"kernel": book()[name]} for name in ("query", "key", "value")}}
    x, key = book()["x"][:4], jax.random.key(seed + 1)
    examples, keys = jnp.stack([x, x]), jax.random.split(key)
    apply = lambda x, key: module.apply(variables, x, deterministic=False, dropout_key=key)  # noqa: E731
    return {
        "outputs of one key": jax.vmap(apply, in_axes=(0, None))(examples, key),
        "outputs of split keys": jax.vmap(apply)(examples, keys),
        "gradient of token 1": jax.grad(lambda x: module.apply(variables, x)[1].sum())(x),
    }
