import dataclasses
import functools

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
        (lambda: GPTConfig(11, 9, 2, 2, 8, rotary=1), ValueError, "rotary=1 must be True or False: write rotary=True"),
        (lambda: GPTConfig(11, 9, 2, 2, 6, rotary=True), ValueError, "features=6 / num_heads=2 is odd.*features=8"),
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


def test_an_id_that_comes_back_later_is_another_document():
    model = GPT(GPTConfig(32, 12, 2, 2, 8))
    tokens = jax.random.randint(jax.random.key(0), (2, 12), 0, 32)
    params = model.init(jax.random.key(1), tokens)
    apply = jax.jit(model.apply)
    back, once = ([0, 0, 1, 1, 0, 0, 2, 1, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5])
    expected = apply(params, tokens, documents=jnp.array([once] * 2))
    for documents in (jnp.array([back] * 2), jnp.array(back), np.array(back, np.uint8)):
        np.testing.assert_array_equal(apply(params, tokens, documents=documents), expected)
    np.testing.assert_allclose(expected[0, 4:6], apply(params, tokens[0, 4:6]), atol=1e-5)
    for documents, error, words in (
        (jnp.zeros((2, 11), int), ValueError, r"documents has shape \(2, 11\)"),
        (jnp.zeros((3, 12), int), ValueError, r"documents has shape \(3, 12\)"),
        (jnp.zeros((2, 12)), TypeError, "documents has dtype float32"),
    ):
        with pytest.raises(error, match=words):
            model.apply(params, tokens, documents=documents)


@pytest.fixture(scope="module")
def dropped():
    """The steps of a forward pass with dropout, and the parameters: three blocks, each of which shows one place of it.

    The branches of block 0 give zeros, so its output is the embeddings. Those of block 1 give 1 and 10, so its output
    minus its input says which of the two were dropped. Block 2 is as initialized.
    """
    model, batch = GPT(GPTConfig(11, 32, 3, 2, 16, dropout_rate=0.25)), tokens(shape=(4, 32))
    params = model.init(jax.random.key(0), batch)["params"]
    for block, attended, forwarded in (("block_0", 0.0, 0.0), ("block_1", 1.0, 10.0)):
        for dense, constant in ((params[block]["attention"]["out"], attended), (params[block]["contract"], forwarded)):
            dense |= {"kernel": jnp.zeros_like(dense["kernel"]), "bias": jnp.full_like(dense["bias"], constant)}
    run = jax.jit(
        lambda key: model.apply({"params": params}, batch, False, key, mutable=True, capture_intermediates=True)
    )
    steps = run(jax.random.key(3))[1]["intermediates"]
    embedded = params["embedding"]["embedding"][batch] + params["positions"]
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, steps, embedded))


def check_dropped(factors):
    """Check that these are factors of dropout at a rate of 1/4."""
    np.testing.assert_allclose(np.unique(factors.round(3)), [0, 1.333])
    assert abs((factors > 0).mean() - 0.75) < 0.04


def test_dropout_acts_on_the_embeddings(dropped):
    _, steps, embedded = dropped
    check_dropped(steps["block_0"]["__call__"][0] / embedded)


def test_dropout_acts_on_both_branches_with_bits_of_their_own(dropped):
    _, steps, _ = dropped
    branches = (steps["block_1"]["__call__"][0] - steps["block_0"]["__call__"][0]) * 0.75
    forwarded = branches.round() // 10
    attended = branches.round() - 10 * forwarded
    np.testing.assert_allclose(branches, attended + 10 * forwarded, atol=1e-4)
    for kept in (attended, forwarded):
        check_dropped(kept / 0.75)
    assert abs((attended * forwarded).mean() - 0.75**2) < 0.04  # both are kept as often as if drawn apart
    embeddings = steps["block_0"]["__call__"][0] != 0
    assert abs((attended * embeddings).mean() - 0.75**2) < 0.04


def test_dropout_acts_on_the_attention_weights(dropped):
    params, steps, _ = dropped
    params, steps = params["block_2"]["attention"], steps["block_2"]["attention"]
    weights, kept_weights, values = (steps[name][0] for name in ("weights", "kept_weights", "values"))
    check_dropped(kept_weights[weights > 0] / weights[weights > 0])
    context = np.einsum("bhts,bshd->bthd", kept_weights, values).reshape(4, 32, 16)
    expected = context @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(steps["__call__"][0], expected, atol=1e-5)


def test_padding_may_be_any_number_and_ids_outside_the_vocabulary_are_an_error_or_nan():
    model, params = model_and_params()
    decode = functools.partial(model.apply, {"params": params}, decode=True, mutable=["cache"])
    expected = decode(tokens()[:3])[0]
    for pad in (11, -1, 10**6):
        padded = jnp.concatenate([tokens()[:3], jnp.array([pad] * 6)])
        for run in (decode, jax.jit(decode)):
            logits, cache = run(padded, lengths=jnp.array(3))
            np.testing.assert_allclose(logits[:3], expected, atol=1e-5)
            assert np.isfinite(jax.tree.leaves(cache)[0]).all()
        with pytest.raises(ValueError, match=f"tokens has the id {pad}.*the ids 0 to 10"):
            model.apply({"params": params}, padded)
        assert np.isnan(jax.jit(model.apply)({"params": params}, padded)[3:]).all()


def test_lengths_are_checked_and_where_they_are_traced_wrong_ones_give_nan():
    model, params = model_and_params()
    decode = functools.partial(model.apply, decode=True, mutable=["cache"])
    step = jax.jit(decode)
    for wrong in (4, -1):
        with pytest.raises(ValueError, match="of which from 0 to 3 are real"):
            decode({"params": params}, tokens(shape=(2, 3)), lengths=[2, wrong])
        _, cache = step({"params": params}, tokens(shape=(2, 3)), lengths=jnp.array([2, wrong]))
        logits, _ = step({"params": params} | cache, tokens(shape=(2, 1)))
        assert np.isfinite(logits[0]).all()
        assert np.isnan(logits[1]).all()


def test_sizes_may_be_numpys_integers():
    sizes = GPTConfig(np.int64(11), np.uint8(9), np.int32(1), np.int16(2), np.int64(8), np.float32(0.5))
    assert sizes == GPTConfig(11, 9, 1, 2, 8, 0.5)
    # So that they can be saved as JSON.
    assert {type(size) for size in dataclasses.astuple(sizes)} <= {int, float, bool, type(None)}
    with pytest.raises(ValueError, match=r"num_heads=2\.0 must be an integer"):
        GPTConfig(11, 9, 1, 2.0, 8)


@pytest.mark.slow
def test_computing_in_bfloat16_keeps_logits_and_parameters_in_float32():
    config, tokens = GPTConfig(32, 12, 2, 2, 8), jnp.arange(12)
    params = GPT(config).init(jax.random.key(1), tokens)
    with jax.numpy_dtype_promotion("standard"):  # as Flax's own layers need it
        half, whole = (GPT(config, dtype=dtype).apply(params, tokens) for dtype in (jnp.bfloat16, None))
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert 0 < float(jnp.abs(half - whole).max()) < 0.02


CHANGED = dataclasses.replace(
    CONFIG, rotary=True, normalize_heads=True, rms_norm=True, squared_relu=True, use_bias=False,
)  # fmt: skip


def changed_gpt(params, tokens, config):
    """The model without GPT-2's parts in float64 NumPy, a sequence at a time; the rotation in complex numbers."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x = params["embedding"]["embedding"][tokens]
    pairs = config.features // config.num_heads // 2
    turns = np.exp(1j * np.arange(len(tokens))[:, None] * 10_000.0 ** (-np.arange(pairs) / pairs))

    def rms(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    def rotated(x):
        turned = (x[:, :pairs] + 1j * x[:, pairs:]) * turns
        return np.concatenate([turned.real, turned.imag], -1)

    for layer in range(config.num_layers):
        block, attended = params[f"block_{layer}"], []
        attention = block["attention"]
        query, key, value = (rms(x) @ attention[name]["kernel"] for name in ("query", "key", "value"))
        for head in np.split(np.arange(config.features), config.num_heads):
            q = rotated(rms(query[:, head]) * attention["query_norm"]["scale"])
            k = rotated(rms(key[:, head]) * attention["key_norm"]["scale"])
            weights = np.tril(np.exp(q @ k.T / np.sqrt(len(head))))
            attended.append(weights / weights.sum(-1, keepdims=True) @ value[:, head])
        x = x + np.concatenate(attended, -1) @ attention["out"]["kernel"]
        x = x + np.maximum(rms(x) @ block["expand"]["kernel"], 0) ** 2 @ block["contract"]["kernel"]
    return rms(x) @ params["embedding"]["embedding"].T


def test_each_change_to_gpt2_is_as_described():
    model, params = model_and_params(CHANGED)
    logits = model.apply({"params": params}, tokens())
    np.testing.assert_allclose(logits, changed_gpt(params, np.asarray(tokens()), CHANGED), atol=2e-5)


def test_a_model_without_learned_positions_generates_with_its_cache_what_it_computes_without():
    model, params = model_and_params(CHANGED)
    apply, sequence = jax.jit(lambda s: model.apply({"params": params}, s)), list(np.asarray(tokens())[:3])
    for _ in range(9):  # beyond the context of 9
        window = sequence[-9:]
        sequence.append(int(apply(jnp.array(window + [0] * (9 - len(window))))[len(window) - 1].argmax()))
    assert generate(model, params, tokens()[:3], 9, temperature=0).tolist() == sequence[3:]


def test_without_its_causal_mask_a_gpt_attends_to_later_tokens_and_refuses_to_generate():
    model, params = model_and_params()
    without = GPT(CONFIG, without=("causal",))
    first, changed = tokens(), tokens().at[-1].set((tokens()[-1] + 1) % CONFIG.vocab_size)
    for gpt, is_same in (model, True), (without, False):
        logits, later = (gpt.apply({"params": params}, ids) for ids in (first, changed))
        assert np.allclose(logits[:-1], later[:-1], atol=1e-6) == is_same
    with pytest.raises(ValueError, match="this GPT is without its causal mask, so it cannot generate"):
        generate(without, params, first, 2, temperature=0)


def test_without_its_scale_a_gpt_is_the_whole_one_with_larger_queries():
    config = dataclasses.replace(CONFIG, num_layers=1)
    _, params = model_and_params(config)
    smaller = jax.tree_util.tree_map_with_path(
        lambda path, p: p / np.sqrt(np.float32(4)) if "query" in jax.tree_util.keystr(path) else p, params
    )
    without = GPT(config, without=("scale",)).apply({"params": smaller}, tokens())
    chex.assert_trees_all_close(without, GPT(config).apply({"params": params}, tokens()), atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, CHANGED], ids=["learned", "rotary"])
def test_without_positions_one_block_does_not_know_the_order_of_earlier_tokens(config):
    config = dataclasses.replace(config, num_layers=1)
    model, params = model_and_params(config)
    reordered = tokens()[jnp.array([3, 0, 5, 1, 7, 2, 4, 6, 8])]
    for gpt, is_same in (model, False), (GPT(config, without=("positions",)), True):
        logits, other = (gpt.apply({"params": params}, ids)[-1] for ids in (tokens(), reordered))
        assert np.allclose(logits, other, atol=1e-5) == is_same


def test_a_part_that_is_not_one_is_named():
    with pytest.raises(ValueError, match="names 'mask', but the parts are"):
        GPT(CONFIG, without=("mask",)).init(jax.random.key(0), tokens())
