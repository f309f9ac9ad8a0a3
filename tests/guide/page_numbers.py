"""The numbers that each section must show, from separate runs of the library.

`EXPECTED` has a function for each section, which returns a function that maps the setting of the switches, a dictionary
of strings, to the section's arrays by name. Arrays must be equal to the last bit; those in `Near` are computed in
another order, or compiled as one program, and equal but for rounding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle

from jaxattn import MultiHeadAttention, MultiHeadAttentionWrapper, parallel_from_stacked
from jaxattn.functional import (
    attention_scores,
    attention_weights,
    context_vectors,
    renormalized_weights,
)


class Near:
    """Numbers that another order of summation may change in the last bits."""

    def __init__(self, array):
        self.array = np.asarray(array)


def assert_same(actual, expected):
    if isinstance(expected, Near):
        np.testing.assert_allclose(actual, expected.array, atol=1e-6)
    else:
        expected = np.asarray(expected, np.float32)
        assert actual.shape == expected.shape
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def simple(story):
    x = story.inputs
    scores = attention_scores(x, x)
    ways = {"softmax": attention_weights(scores), "divide": scores / scores.sum(-1, keepdims=True)}
    return lambda setting: {
        "inputs": x,
        "scores": scores,
        "weights": ways[setting["way"]],
        "context": context_vectors(ways[setting["way"]], x),
    }


def trainable(story):
    params = story.trainable["params"]
    queries, keys, values = project(params, story.inputs)
    scores, root = attention_scores(queries, keys), queries.shape[-1] ** -0.5

    def numbers(setting):
        scale = (root if setting["scaling"] == "on" else 1.0) / float(setting["temperature"])
        weights = attention_weights(scores, scale=scale)
        return {
            "inputs": story.inputs,
            "queries": queries,
            "keys": keys,
            "values": values,
            "scores": scores,
            "scaled": scores * jnp.float32(scale),
            "weights": weights,
            "context": context_vectors(weights, values),
            **{f"W {name}": params[name]["kernel"] for name in ("query", "key", "value")},
        }

    return numbers


def masked(story):
    """What the sections of the mask and of dropout share."""
    queries, keys, values = project(story.causal["params"], story.inputs)
    scores, mask = attention_scores(queries, keys), jnp.tril(jnp.ones((len(story.tokens),) * 2, bool))
    scaled = scores * jnp.float32(queries.shape[-1] ** -0.5)
    return {
        "queries": queries,
        "keys": keys,
        "values": values,
        "scores": scores,
        "scaled": scaled,
        "mask": mask,
        "masked": jnp.where(mask, scaled, -jnp.inf),
    }


def causal(story):
    shared = masked(story)
    scores, mask, root = shared["scores"], shared["mask"], shared["queries"].shape[-1] ** -0.5
    unmasked = attention_weights(scores, scale=root)
    ways = {
        "before": attention_weights(scores, mask, scale=root),
        "after": jnp.where(mask, unmasked, 0),
        "renormalized": renormalized_weights(scores, mask, scale=root),
    }

    def numbers(setting):
        weights = ways[setting["way"]]
        return shared | {
            "unmasked": unmasked,
            "zeroed": ways["after"],
            "weights": weights,
            "sums": Near(weights.sum(-1, keepdims=True)),
            "context": context_vectors(weights, shared["values"]),
        }

    return numbers


def dropped(story):
    shared = masked(story)
    weights = attention_weights(shared["scores"], shared["mask"], scale=shared["queries"].shape[-1] ** -0.5)

    def numbers(setting):
        rate, key = float(setting["rate"]), jax.random.key(int(setting["key"]))
        factors = oracle.dropout_factors(weights.shape, rate, key)
        kept_weights = np.asarray(weights) * np.asarray(factors, np.float32)
        return shared | {
            "weights": weights,
            "kept weights": kept_weights,
            "sums": Near(kept_weights.sum(-1, keepdims=True)),
            "context": context_vectors(kept_weights, shared["values"]),
        }

    return numbers


def heads(story):
    x, T, out = story.inputs, len(story.tokens), story.parallel["params"]["out"]
    by_head = zip(*(project(params, x) for params in story.stacked["params"].values()), strict=True)
    stacked = [jnp.stack(each) for each in by_head]  # (H, T, D)
    projected = [
        jnp.moveaxis(array.reshape(T, 2, -1), 1, 0)  # (T, H * D) -> (H, T, D)
        for array in project(story.parallel["params"], x)
    ]
    split = {"stacked": stacked, "parallel": stacked, "projected": projected}
    joined_params = {"params": parallel_from_stacked(story.stacked["params"])}
    features = out["kernel"].shape[0]
    results = {
        "stacked": MultiHeadAttentionWrapper(2, 2).apply(story.stacked, x, return_weights=True),
        "parallel": MultiHeadAttention(2, 4).apply(joined_params, x, return_weights=True),
        "projected": MultiHeadAttention(2, features).apply(story.parallel, x, return_weights=True),
    }
    join = lambda array: jnp.concatenate(list(array), axis=-1)  # noqa: E731

    def numbers(setting):
        (queries, keys, values), (output, weights) = split[setting["way"]], results[setting["way"]]
        scores = attention_scores(queries, keys)
        scaled, context = scores * queries.shape[-1] ** -0.5, weights @ values
        return {
            "joined queries": Near(join(queries)),
            "joined values": Near(join(values)),
            "queries": Near(queries),
            "keys": Near(keys),
            "values": Near(values),
            "scores": Near(scores),
            "scaled": Near(scaled),
            "masked": Near(jnp.where(jnp.tril(jnp.ones((T, T), bool)), scaled, -jnp.inf)),
            "weights": Near(weights),
            "context": Near(context),
            "concatenation": Near(join(context)),
            "output": Near(output),
            "W out": out["kernel"],
            "bias": out["bias"][None],
        }

    return numbers


def project(params, x):
    """Queries, keys and values."""
    layers = [params[name] for name in ("query", "key", "value")]
    return [nn.Dense(layer["kernel"].shape[1], use_bias=False).apply({"params": layer}, x) for layer in layers]


EXPECTED = {"simple": simple, "trainable": trainable, "causal": causal, "dropout": dropped, "heads": heads}
