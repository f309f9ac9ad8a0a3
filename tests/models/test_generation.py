import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import and_slowly

from jaxattn import GPT, GPTConfig, assert_causal, generate, stream
from jaxattn.models.sampling import NO_TOKEN, Sampling, sample, top_p_mask

CONFIG = GPTConfig(vocab_size=13, context_length=12, num_layers=2, num_heads=2, features=8)


@pytest.fixture(scope="module")
def model():
    model = GPT(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(3, int))["params"]
    # Larger parameters than initial ones, so that the most likely tokens differ.
    return model, jax.tree.map(
        lambda leaf: leaf + 0.5 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )


def draw(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab_size)


@pytest.mark.parametrize(
    ("batch", "steps"),
    [((), (12,)), ((3,), (5, 1, 1, 4, 1)), *and_slowly(((), (5, 1, 1, 4, 1)), ((3,), (1,) * 12), ((3,), (1, 11)))],
)
def test_decoding_gives_the_logits_of_a_full_forward_pass_at_every_position(model, steps, batch):
    model, params = model
    tokens = draw(0, *batch, 12)
    full = apply(model, params, tokens)
    decode = jax.jit(functools.partial(model.apply, decode=True, mutable=["cache"]))
    rows, cache, start = [], {}, 0
    for T in steps:
        row, cache = decode({"params": params} | cache, tokens[..., start : start + T])
        rows, start = [*rows, row], start + T
    chex.assert_trees_all_close(jnp.concatenate(rows, -2), full, atol=2e-4, rtol=1e-4)
    beyond, _ = decode({"params": params} | cache, tokens[..., :1])
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


@pytest.mark.parametrize(
    ("P", "num_tokens"),
    [
        (1, 20),
        (4, 9),
        (15, 3),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 6), (4, 8), (11, 1), (12, 6))),
    ],
)
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
    for options in ({}, {"top_k": 3, "top_p": 0.7, "temperature": 1.5}):
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


def test_top_p_keeps_the_tokens_that_float64_keeps():
    rng = np.random.default_rng(0)
    logits = (-1.2 * np.log(1 + np.arange(50257)) + 1e-3 * rng.random(50257)).astype(np.float32)
    probabilities = np.exp(np.float64(logits))
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) / probabilities.sum() - probabilities[order] / probabilities.sum()
    for top_p in (1e-9, 0.3, 0.9, 0.999, 1 - 1e-6):
        kept, expected = int(top_p_mask(jnp.asarray(logits), top_p).sum()), int((before < top_p).sum())
        assert abs(kept - expected) <= 0.01 * expected


def draws(logits, number=300, **options):
    """The tokens drawn from one row of logits."""
    sampling = Sampling.checked(len(logits), **{"temperature": 1.0, "top_k": None, "top_p": None} | options)
    keys = jax.random.split(jax.random.key(0), number)
    return np.asarray(jax.jit(jax.vmap(lambda key: sample(jnp.asarray(logits), sampling, key)))(keys))


def test_top_p_of_one_drops_no_token():
    logits = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    np.testing.assert_array_equal(draws(logits, top_p=1, stop_token=None), draws(logits, stop_token=None))


def test_top_k_draws_from_k_tokens_where_logits_are_equal():
    assert set(draws(np.zeros(50, np.float32), top_k=3, stop_token=None).tolist()) == {0, 1, 2}
    tied = np.array([0, 1, 1, 1, 2], np.float32)
    assert set(draws(tied, top_k=2, stop_token=None).tolist()) == {1, 4}


@pytest.mark.parametrize("pad", [13, -1, 10**6, -(2**31)])
def test_padding_of_any_number_never_reaches_results(model, pad):
    expected = generate(*model, jnp.array([1, 2, 3]), 12, temperature=0)
    # The second prompt fills the context, so that all windows are read as a whole.
    prompt, lengths = jnp.array([[1, 2, 3] + [pad] * 9, [4] * 12]), jnp.array([3, 12])
    np.testing.assert_array_equal(generate(*model, prompt, 12, temperature=0, lengths=lengths)[0], expected)
    streamed = stream(*model, prompt, 12, temperature=0, lengths=[3, 12])
    np.testing.assert_array_equal(jnp.stack(list(streamed), -1)[0], expected)
    traced = jax.jit(lambda prompt: generate(*model, prompt, 12, temperature=0, lengths=lengths))
    np.testing.assert_array_equal(traced(prompt)[0], expected)


@pytest.mark.parametrize("token", [13, -1, 2**31 - 1, -5])
def test_ids_outside_the_vocabulary_are_an_error_and_no_token_where_they_are_traced(model, token):
    # The first token of the longer prompt is beyond the context, so no logit depends on it.
    for prompt in ([1, token, 2], [token] + [1] * 14):
        for function in (generate, stream):
            with pytest.raises(ValueError, match=f"prompt has the id {token}.*the ids 0 to 12"):
                function(*model, [[3] * len(prompt), prompt], 2, temperature=0)
    traced = jax.jit(lambda prompt: generate(*model, prompt, 2, temperature=0))(jnp.array([[1, 2, 3], [1, token, 3]]))
    np.testing.assert_array_equal(traced[1], [NO_TOKEN] * 2)
    np.testing.assert_array_equal(traced[0], generate(*model, [1, 2, 3], 2, temperature=0))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"key": jax.random.key(0), "top_k": 3, "top_p": 0.5}])
def test_parameters_that_are_no_numbers_are_an_error_and_draw_no_token(model, number, options):
    model, params = model
    params = params | {"norm": jax.tree.map(lambda leaf: leaf.at[0].set(number), params["norm"])}
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        generate(model, params, [1, 2], 3, **options)
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        next(stream(model, params, [1, 2], 3, **options))
    traced = jax.jit(lambda params: generate(model, params, jnp.array([1, 2]), 3, **options))(params)
    np.testing.assert_array_equal(traced, [NO_TOKEN] * 3)


@contextlib.contextmanager
def count_compiled():
    """Count the programs that are compiled, or taken from the cache on disk."""
    count = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_prompts_of_all_lengths_share_a_few_programs():
    model = GPT(GPTConfig(13, 128, 1, 2, 8))
    params = model.init(jax.random.key(0), jnp.zeros(3, int))["params"]
    lengths = [3, 5, 9, 16, 17, 20, 31, 33, 60, 64]
    widths = 3  # 16, 32 and 64

    def run(length, P):
        generate(model, params, np.ones(P, int), 2, temperature=0, lengths=length)

    run(10, 10)  # compiles what is compiled once
    with count_compiled() as compiled:
        for length in lengths:
            run(length, length)
            run(length, 64)  # the same prompts with padding
    assert len(compiled) == widths - 1
    list(stream(model, params, np.ones(10, int), 2, temperature=0))
    with count_compiled() as compiled:
        for length in lengths:
            list(stream(model, params, np.ones(length, int), 2, temperature=0))
    assert len(compiled) == widths - 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, *and_slowly(np.int8, np.uint32, jnp.uint8, list)])
def test_token_ids_and_sizes_of_all_integer_types_are_taken(model, dtype):
    expected = generate(*model, draw(0, 2, 5), 9, key=jax.random.key(0), top_k=3, lengths=jnp.array([3, 5]))
    prompt = draw(0, 2, 5).tolist() if dtype is list else np.asarray(draw(0, 2, 5)).astype(dtype)
    raw_key = np.asarray(jax.random.key_data(jax.random.key(0)))  # as a checkpoint restores it
    options = {
        "key": raw_key,
        "top_k": np.int64(3),
        "lengths": np.array([3, 5], np.uint8),
        "temperature": np.float32(1),
    }
    np.testing.assert_array_equal(generate(*model, prompt, np.int64(9), **options), expected)
    np.testing.assert_array_equal(jnp.stack(list(stream(*model, prompt, np.uint8(9), **options)), -1), expected)


@pytest.mark.slow
@jax.numpy_dtype_promotion("standard")
def test_64_bit_mode_changes_no_token(model):
    prompts, options = draw(0, 2, 5), {"key": jax.random.key(0), "top_k": 3, "top_p": 0.9, "lengths": [3, 5]}
    expected = generate(*model, prompts, 9, **options)
    with jax.enable_x64(True):
        tokens = generate(*model, np.asarray(prompts, np.int64), 9, **options)
        streamed = list(stream(*model, np.asarray(prompts, np.int64), 9, **options))
    assert tokens.dtype == streamed[0].dtype == jnp.int32
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(np.stack(streamed, -1), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "vocab_size"),  # a size for each, so that each compiles a program
    [
        (lambda: jax.debug_nans(True), 13),
        (lambda: jax.debug_infs(True), 14),
        (lambda: jax.disable_jit(), 15),
        (lambda: jax.checking_leaks(), 16),
        (lambda: jax.threefry_partitionable(False), 17),
        (lambda: jax.default_device(jax.devices()[0]), 18),
    ],
    ids=["debug_nans", "debug_infs", "disable_jit", "checking_leaks", "threefry", "default_device"],
)
def test_no_context_changes_what_is_most_likely(context, vocab_size):
    model = GPT(GPTConfig(vocab_size, 8, 1, 2, 8))
    params = jax.tree.map(lambda leaf: 10 * leaf, model.init(jax.random.key(0), jnp.zeros(3, int))["params"])
    prompts, options = np.array([[1, 2, 3], [4, 5, 99]]), {"temperature": 0, "lengths": [3, 2]}
    with context():
        tokens = generate(model, params, prompts, 7, **options)
        streamed = np.stack(list(stream(model, params, prompts, 7, **options)), -1)
    np.testing.assert_array_equal(streamed, tokens)
    np.testing.assert_array_equal(generate(model, params, prompts, 7, **options), tokens)


def test_no_logit_depends_on_a_later_embedding_while_decoding(model):
    model, params = model
    tokens = draw(0, 6)
    decode = jax.jit(functools.partial(model.apply, decode=True, mutable=["cache"]))
    _, cache = decode({"params": params}, draw(1, 3))
    rows = params["embedding"]["embedding"][tokens]

    @jax.jit
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
        ({"top_k": 14}, "top_k=14"),
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


@pytest.mark.parametrize("options", [{"top_k": 1.5}, {"stop_token": 2.0}, {"num_tokens": 2.5}, {"num_tokens": "2"}])
def test_numbers_that_are_not_whole_are_named(model, options):
    options = {"num_tokens": 2, "key": jax.random.key(0)} | options
    for function in (generate, stream):
        with pytest.raises(TypeError, match=f"{list(options)[-1] if len(options) > 2 else 'num_tokens'} is "):
            function(*model, draw(0, 2, 3), **options)


def test_no_tokens_are_none_of_each_prompt(model):
    for shape in ((3,), (2, 3)):
        tokens = generate(*model, draw(0, *shape), 0, temperature=0)
        assert (tokens.shape, tokens.dtype) == ((*shape[:-1], 0), jnp.int32)
        assert list(stream(*model, draw(0, *shape), 0, temperature=0)) == []
