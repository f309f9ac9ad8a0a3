import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import GPT, GPTConfig, assert_causal, generate, stream

CONFIG = GPTConfig(vocab_size=13, context_length=12, num_layers=2, num_heads=2, features=8)


@pytest.fixture(scope="module")
def model():
    model = GPT(CONFIG)
    params = model.init(jax.random.key(0), jnp.zeros(3, int))["params"]
    # Larger parameters than initial ones, so that the most likely tokens differ.
    return model, jax.tree.map(
        lambda leaf: leaf + 0.5 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )


def draw(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab_size)


@pytest.mark.parametrize("steps", [(12,), (1,) * 12, (5, 1, 1, 4, 1), (1, 11)])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_decoding_gives_the_logits_of_a_full_forward_pass_at_every_position(model, steps, batch):
    model, params = model
    tokens = draw(0, *batch, 12)
    full = model.apply({"params": params}, tokens)
    rows, cache, start = [], {}, 0
    for T in steps:
        row, cache = model.apply(
            {"params": params} | cache, tokens[..., start : start + T], decode=True, mutable=["cache"]
        )
        rows, start = [*rows, row], start + T
    chex.assert_trees_all_close(jnp.concatenate(rows, -2), full, atol=2e-4, rtol=1e-4)
    beyond, _ = model.apply({"params": params} | cache, tokens[..., :1], decode=True, mutable=["cache"])
    assert np.isnan(beyond).all()


def naive(model, params, prompt, num_tokens):
    """A full forward pass over the latest tokens for each new one."""
    tokens = list(np.asarray(prompt))
    for _ in range(num_tokens):
        latest = tokens[-CONFIG.context_length :]
        padded = jnp.asarray(latest + [0] * (CONFIG.context_length - len(latest)))
        tokens.append(int(apply(model, params, padded)[len(latest) - 1].argmax()))
    return tokens[len(prompt) :]


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, tokens):
    return model.apply({"params": params}, tokens)


@pytest.mark.parametrize(("P", "num_tokens"), [(1, 6), (1, 20), (4, 8), (4, 9), (11, 1), (12, 6), (15, 3)])
def test_the_most_likely_continuation_equals_that_of_full_forward_passes(model, P, num_tokens):
    prompt = draw(P, P)
    expected = naive(*model, prompt, num_tokens)
    assert generate(*model, prompt, num_tokens, temperature=0).tolist() == expected
    assert [int(token) for token in stream(*model, prompt, num_tokens, temperature=0)] == expected


def test_each_of_a_batch_of_prompts_of_different_lengths_continues_as_if_alone(model):
    prompts, lengths = draw(0, 4, 14), jnp.array([3, 14, 7, 12])
    together = generate(*model, prompts, 9, temperature=0, lengths=lengths)
    for prompt, length, tokens in zip(prompts, lengths.tolist(), together, strict=True):
        assert tokens.tolist() == naive(*model, prompt[:length], 9)


def test_stream_yields_the_tokens_of_generate(model):
    for options in ({}, {"top_k": 3}, {"top_p": 0.7, "temperature": 1.5}):
        options["key"] = jax.random.key(3)
        streamed = list(stream(*model, draw(0, 2, 3), 15, **options))
        np.testing.assert_array_equal(jnp.stack(streamed, -1), generate(*model, draw(0, 2, 3), 15, **options))


def test_nothing_follows_the_stop_token(model):
    prompt = draw(0, 3)
    free = generate(*model, prompt, 20, key=jax.random.key(0)).tolist()
    stop = free[4]
    cut = free[: free.index(stop) + 1]
    stopped = generate(*model, prompt, 20, key=jax.random.key(0), stop_token=stop).tolist()
    assert stopped == cut + [stop] * (20 - len(cut))
    assert [int(token) for token in stream(*model, prompt, 20, key=jax.random.key(0), stop_token=stop)] == cut


def test_top_p_draws_from_the_fewest_tokens_that_hold_the_probability(model):
    model, params = model
    prompt = draw(0, 5)
    probabilities = jax.nn.softmax(model.apply({"params": params}, prompt)[-1])
    order = np.argsort(-np.asarray(probabilities))
    top_p = 0.6
    fewest = order[: int(np.searchsorted(np.cumsum(np.asarray(probabilities)[order]), top_p)) + 1]
    prompts = jnp.broadcast_to(prompt, (500, 5))
    drawn = generate(model, params, prompts, 1, key=jax.random.key(0), top_p=top_p)
    assert set(np.unique(drawn)) == set(fewest.tolist())
    expected = np.asarray(probabilities)[fewest] / np.asarray(probabilities)[fewest].sum()
    frequencies = (np.asarray(drawn)[:, 0][:, None] == fewest).mean(0)
    np.testing.assert_allclose(frequencies, expected, atol=0.08)


def test_no_logit_depends_on_a_later_embedding_while_decoding(model):
    model, params = model
    tokens = draw(0, 6)
    _, cache = model.apply({"params": params}, draw(1, 3), decode=True, mutable=["cache"])
    rows = params["embedding"]["embedding"][tokens]

    def logits(rows):
        # Each token gets a row of its own, so that its vector can be changed alone.
        table = jnp.concatenate([params["embedding"]["embedding"], rows])
        changed = params | {"embedding": {"embedding": table}}
        own = jnp.arange(6) + CONFIG.vocab_size
        wide = GPT(GPTConfig(CONFIG.vocab_size + 6, 12, 2, 2, 8))
        return wide.apply({"params": changed} | cache, own, decode=True, mutable=["cache"])[0][:, : CONFIG.vocab_size]

    assert_causal(logits, rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_p": 0}, "top_p=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"stop_token": 13}, "stop_token=13"),
        ({"lengths": jnp.array(3)}, "lengths has shape"),
        ({"lengths": jnp.array([0, 3])}, "lengths must be from 1"),
        ({"lengths": jnp.array([1.0, 3.0])}, "lengths has dtype"),
        ({"prompt": jnp.ones((2, 3))}, "prompt has dtype"),
        ({"prompt": jnp.zeros((2, 0), int)}, r"prompt has shape \(2, 0\)"),
    ],
)
def test_bad_arguments_are_named(model, options, words):
    options = {"prompt": draw(0, 2, 3), "num_tokens": 2, "key": jax.random.key(0)} | options
    for function in (generate, stream):
        with pytest.raises(ValueError, match=words):
            function(*model, **options)
