import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxattn import GPT, GPTConfig, generate

CONFIG = GPTConfig(vocab_size=11, context_length=9, num_layers=2, num_heads=2, features=8)


def tokens(seed=0, shape=(9,)):
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab_size)


def model_and_params(config=CONFIG):
    model = GPT(config)
    params = model.init(jax.random.key(0), tokens())["params"]
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return model, jax.tree.map(lambda p: 0.3 * jax.random.normal(next(keys), p.shape), params)


def norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gpt2(params, tokens, num_heads):
    """GPT-2 in float64 NumPy, a sequence at a time."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x = params["embedding"]["embedding"][tokens] + params["positions"][: len(tokens)]
    for layer in range(CONFIG.num_layers):
        block = params[f"block_{layer}"]
        normed, attended = norm(x, block["attention_norm"]), []
        query, key, value = (dense(normed, block["attention"][name]) for name in ("query", "key", "value"))
        for head in np.split(np.arange(x.shape[-1]), num_heads):
            scores = query[:, head] @ key[:, head].T / np.sqrt(len(head))
            weights = np.tril(np.exp(scores))
            attended.append(weights / weights.sum(-1, keepdims=True) @ value[:, head])
        x = x + dense(np.concatenate(attended, -1), block["attention"]["out"])
        x = x + dense(gelu(dense(norm(x, block["feed_forward_norm"]), block["expand"])), block["contract"])
    return norm(x, params["norm"]) @ params["embedding"]["embedding"].T


@pytest.mark.parametrize("length", [1, 4, 9])
def test_the_architecture_is_gpt2s(length):
    model, params = model_and_params()
    logits = model.apply({"params": params}, tokens()[:length])
    chex.assert_shape(logits, (length, CONFIG.vocab_size))
    np.testing.assert_allclose(logits, gpt2(params, np.asarray(tokens())[:length], 2), atol=2e-5)


@given(t=st.integers(0, 8), seed=st.integers(0, 1000))
def test_no_future_token_changes_a_past_logit(t, seed):
    model, params = model_and_params()
    sequence = tokens(seed)
    other = sequence.at[t].set((sequence[t] + 1) % CONFIG.vocab_size)
    before, after = (model.apply({"params": params}, s) for s in (sequence, other))
    np.testing.assert_array_equal(before[:t], after[:t])
    assert (before[t] != after[t]).any()


def test_batches_and_vmap_agree_and_drop_other_entries_in_each_example():
    model, params = model_and_params(GPTConfig(11, 9, 2, 2, 8, dropout_rate=0.3))
    batch = tokens(shape=(3, 9))
    apply = jax.jit(lambda s: model.apply({"params": params}, s))
    np.testing.assert_allclose(apply(batch), jax.vmap(apply)(batch), atol=1e-5)
    same = jnp.stack([tokens()] * 3)
    drop = jax.jit(lambda s, key: model.apply({"params": params}, s, deterministic=False, dropout_key=key))
    for logits in (drop(same, jax.random.key(0)), jax.vmap(drop)(same, jax.random.split(jax.random.key(0), 3))):
        assert len({np.asarray(row).tobytes() for row in logits}) == 3
    stream = jax.jit(lambda s, key: model.apply({"params": params}, s, deterministic=False, rngs={"dropout": key}))
    streamed = stream(same, jax.random.key(0))
    assert (streamed != apply(same)).any()


def test_generation_takes_the_most_likely_token_and_sees_the_latest_context():
    model, params = model_and_params()
    apply = jax.jit(lambda s: model.apply({"params": params}, s)[-1])
    sequence = list(np.asarray(tokens())[:3])
    for _ in range(15):  # beyond the context of 9
        sequence.append(int(apply(jnp.array(sequence[-9:])).argmax()))
    generated = generate(model, params, tokens()[:3], 15, temperature=0)
    assert generated.tolist() == sequence[3:]
    assert generate(model, params, jnp.array(sequence[:16]), 2, temperature=0).tolist() == sequence[16:]


def test_generation_draws_from_the_softmax():
    model, params = model_and_params()
    prompt = tokens()[:4]
    draws = jax.vmap(lambda key: generate(model, params, prompt, 1, key=key, temperature=1.7)[0])
    counts = np.bincount(draws(jax.random.split(jax.random.key(0), 20000)), minlength=11) / 20000
    logits = gpt2(params, np.asarray(prompt), 2)[-1] / 1.7
    expected = np.exp(logits) / np.exp(logits).sum()
    assert np.abs(counts - expected).max() < 5 * (0.25 / 20000) ** 0.5
    most_likely = set(np.argsort(logits)[-3:].tolist())
    drawn = jax.vmap(lambda key: generate(model, params, prompt, 1, key=key, top_k=3)[0])
    assert set(drawn(jax.random.split(jax.random.key(0), 300)).tolist()) == most_likely


MODEL, PARAMS = model_and_params()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MODEL.apply({"params": PARAMS}, tokens(shape=(10,))), ValueError, "10 positions.*context_length=9"),
        (lambda: MODEL.apply({"params": PARAMS}, jnp.ones(4)), TypeError, "tokens has dtype float32"),
        (lambda: MODEL.apply({"params": PARAMS}, jnp.array(4)), ValueError, "single number"),
        (lambda: GPTConfig(11, 9, 2, 3, 8), ValueError, "features=8 is the total width of 3 heads.*features=9"),
        (lambda: GPTConfig(11, 0, 2, 2, 8), ValueError, "context_length=0"),
        (lambda: GPTConfig(11, 9, 2, 2, 8, 1.0), ValueError, "dropout_rate=1.0"),
        (lambda: generate(MODEL, PARAMS, tokens(), 3), ValueError, "key is missing"),
        (lambda: generate(MODEL, PARAMS, tokens()[:0], 3, temperature=0), ValueError, "at least one token"),
        (lambda: generate(MODEL, PARAMS, tokens(), -1, temperature=0), ValueError, "num_tokens=-1"),
        (lambda: generate(MODEL, PARAMS, tokens(), 3, temperature=-1.0), ValueError, "temperature=-1.0"),
        (lambda: generate(MODEL, PARAMS, tokens(), 3, key=jax.random.key(0), top_k=0), ValueError, "top_k=0"),
    ],
)
def test_bad_arguments_are_named_with_what_to_write_instead(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_packed_documents_give_the_logits_of_each_document_alone():
    model = GPT(GPTConfig(32, 12, 2, 2, 8))
    tokens = jax.random.randint(jax.random.key(0), (2, 12), 0, 32)
    documents = jnp.array([[1] * 5 + [2] * 4 + [3] * 3, [7] * 12])
    params = model.init(jax.random.key(1), tokens)
    apply = jax.jit(model.apply)
    packed = apply(params, tokens, documents=documents)
    for row, ids in enumerate(documents):
        for document in set(ids.tolist()):
            alone = apply(params, tokens[row, ids == document])
            np.testing.assert_allclose(packed[row, ids == document], alone, atol=1e-5)
    with pytest.raises(ValueError, match="documents packs several"):
        model.apply(params, tokens, documents=documents, decode=True, mutable=["cache"])


def test_computing_in_bfloat16_keeps_logits_and_parameters_in_float32():
    config, tokens = GPTConfig(32, 12, 2, 2, 8), jnp.arange(12)
    params = GPT(config).init(jax.random.key(1), tokens)
    with jax.numpy_dtype_promotion("standard"):  # as Flax's own layers need it
        half, whole = (GPT(config, dtype=dtype).apply(params, tokens) for dtype in (jnp.bfloat16, None))
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert 0 < float(jnp.abs(half - whole).max()) < 0.02
