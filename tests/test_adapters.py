import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw
from flax import nnx
from oracle import attend

from jaxattn import linen_attention_fn, masks, nnx_attention_fn

T = 130  # long enough for blocks


def with_gradients(apply, variables, x):
    loss = lambda variables, x: (apply(variables, x) ** 2).sum()  # noqa: E731
    return apply(variables, x), jax.grad(loss, (0, 1))(variables, x)


@pytest.mark.parametrize("mask", [None, "causal", "padding"])
def test_linens_layer_gives_the_same_numbers_and_gradients(mask):
    (x,) = draw(0, (2, T, 12))
    mask = {
        None: None,
        "causal": nn.make_causal_mask(jnp.ones((2, T))),
        "padding": nn.make_attention_mask(jnp.ones((2, T)), jnp.arange(T) < jnp.array([[50], [90]])),
    }[mask]
    theirs = nn.MultiHeadDotProductAttention(num_heads=3)
    ours = nn.MultiHeadDotProductAttention(num_heads=3, attention_fn=linen_attention_fn)
    variables = theirs.init(jax.random.key(1), x)
    came, expected = (with_gradients(lambda v, x, m=m: m.apply(v, x, mask=mask), variables, x) for m in (ours, theirs))
    chex.assert_trees_all_close(came, expected, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(came[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_nnxs_layer_gives_the_same_numbers_and_gradients(is_causal):
    (x,) = draw(0, (2, T, 12))
    theirs, ours = (
        nnx.MultiHeadAttention(3, 12, decode=False, rngs=nnx.Rngs(0), **more)
        for more in ({}, {"attention_fn": nnx_attention_fn})
    )
    run = nnx.jit(lambda layer, x: layer(x, is_causal=is_causal))
    chex.assert_trees_all_close(run(ours, x), run(theirs, x), atol=1e-5)
    came, expected = (nnx.grad(lambda m: (m(x, is_causal=is_causal) ** 2).sum())(m) for m in (ours, theirs))
    chex.assert_trees_all_close(nnx.to_pure_dict(came), nnx.to_pure_dict(expected), rtol=1e-4, atol=1e-4)


def test_grouped_heads_of_nnx():
    (x,) = draw(0, (2, T, 12))
    theirs, ours = (
        nnx.MultiHeadAttention(4, 12, qkv_features=8, num_kv_heads=2, decode=False, rngs=nnx.Rngs(0), **more)
        for more in ({}, {"attention_fn": nnx_attention_fn})
    )
    chex.assert_trees_all_close(ours(x), theirs(x), atol=1e-5)


class EncoderBlock(nn.Module):
    """As in Flax's examples: normalise, attend, add; normalise, feed forward, add."""

    attention_fn: object

    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(
            num_heads=2, dropout_rate=0.1, deterministic=deterministic, attention_fn=self.attention_fn
        )(y, mask=nn.make_causal_mask(jnp.ones(x.shape[:2])))
        y = nn.Dense(16)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class LanguageModel(nn.Module):
    attention_fn: object

    @nn.compact
    def __call__(self, tokens, deterministic=True):
        x = nn.Embed(11, 8)(tokens)
        for _ in range(2):
            x = EncoderBlock(self.attention_fn)(x, deterministic)
        return nn.Dense(11)(x)


@pytest.mark.slow
def test_a_whole_model_gives_the_same_numbers_and_trains():
    tokens = jax.random.randint(jax.random.key(0), (2, T), 0, 11)
    theirs, ours = LanguageModel(nn.dot_product_attention), LanguageModel(linen_attention_fn)
    variables = theirs.init(jax.random.key(1), tokens)
    chex.assert_trees_all_close(ours.apply(variables, tokens), theirs.apply(variables, tokens), atol=1e-5)
    loss = lambda v: ours.apply(v, tokens, False, rngs={"dropout": jax.random.key(2)}).var()  # noqa: E731
    chex.assert_tree_all_finite(jax.jit(jax.grad(loss))(variables))


@pytest.mark.parametrize("length", [20, T])
def test_shared_dropout_is_shared_and_other_dropout_is_not(length):
    query, key = draw(0, *[(2, length, 3, 4)] * 2)
    identity = jnp.broadcast_to(jnp.eye(length)[:, None], (2, length, 3, length))
    options = {"dropout_rng": jax.random.key(0), "dropout_rate": 0.5}
    weights = np.swapaxes(attend(query, key, identity)[1], 1, 1)
    for shared in (True, False):
        kept = linen_attention_fn(query, key, identity, broadcast_dropout=shared, **options)
        factors = np.moveaxis(np.asarray(kept), 2, 1) / weights
        np.testing.assert_allclose(np.unique(factors.round(3)), [0, 2])
        assert (factors.round() == factors[:1, :1].round()).all() == shared
    plain = linen_attention_fn(query, key, identity, deterministic=True, **options)
    np.testing.assert_allclose(np.moveaxis(np.asarray(plain), 2, 1), weights, atol=1e-6)


def test_weights_are_sown_where_flax_sows_them():
    (x,) = draw(0, (2, 5, 12))
    theirs = nn.MultiHeadDotProductAttention(num_heads=3)
    ours = nn.MultiHeadDotProductAttention(num_heads=3, attention_fn=linen_attention_fn)
    variables = theirs.init(jax.random.key(1), x)
    came, expected = (m.apply(variables, x, sow_weights=True, mutable=["intermediates"])[1] for m in (ours, theirs))
    chex.assert_trees_all_close(came, expected, atol=1e-6)
    layer = nnx.MultiHeadAttention(3, 12, decode=False, attention_fn=nnx_attention_fn, rngs=nnx.Rngs(0))
    _, sown = nnx.capture(layer, nnx.Intermediate)(x, sow_weights=True)
    (weights,) = jax.tree.leaves(sown)
    assert weights.shape == (2, 3, 5, 5)


def test_linens_decoding_goes_through():
    (x,) = draw(0, (2, 6, 12))
    layer = nn.MultiHeadDotProductAttention(num_heads=3, attention_fn=linen_attention_fn, decode=True)
    variables = layer.init(jax.random.key(1), x)
    full = layer.clone(decode=False).apply(variables, x, mask=nn.make_causal_mask(jnp.ones((2, 6))))
    for t in range(6):
        row, cache = layer.apply(variables, x[:, t : t + 1], mutable=["cache"])
        variables = variables | cache
        chex.assert_trees_all_close(row, full[:, t : t + 1], atol=1e-5)


def test_types_precision_and_masks_of_ours_are_honoured():
    query, key, value = draw(0, *[(2, 5, 3, 4)] * 3)
    context = linen_attention_fn(query, key, value, dtype=jnp.bfloat16)
    assert context.dtype == jnp.bfloat16
    causal = linen_attention_fn(query, key, value, mask=masks.Causal())
    chex.assert_trees_all_close(causal, linen_attention_fn(query, key, value, is_causal=True), atol=0)
    # With other numbers of keys too, `is_causal` aligns as Flax's does.
    for T, mask in ((2, None), (4, None), (2, jnp.ones((2, 1, 1, 5), bool))):
        ours = nnx_attention_fn(query[:, :T], key, value, mask=mask, is_causal=True)
        theirs = nnx.dot_product_attention(
            query[:, :T], key, value, mask=nn.combine_masks(mask, jnp.tril(jnp.ones((1, 1, T, 5))))
        )
        chex.assert_trees_all_close(ours, theirs, atol=1e-6)
    for T in (5, 130):
        heads = jnp.ones((1, T, 1, 8))
        loss = jax.jit(jax.grad(lambda q, h=heads: linen_attention_fn(q, h, h, precision="highest").sum()))
        # For a TPU, because on CPUs all products are exact, and the native kernel has none for XLA.
        text = loss.trace(heads).lower(lowering_platforms=("tpu",)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all("HIGHEST" in line for line in products)


@pytest.mark.parametrize("name", ["einsum_dot_general", "qk_attn_weights_einsum", "attn_weights_value_einsum"])
def test_what_cannot_be_honoured_is_refused_by_name(name):
    query, key, value = draw(0, *[(5, 3, 4)] * 3)
    with pytest.raises(ValueError, match=f"{name} is given"):
        linen_attention_fn(query, key, value, **{name: jnp.einsum})


def test_a_missing_key_is_called_as_flax_calls_it():
    query, key, value = draw(0, *[(5, 3, 4)] * 3)
    with pytest.raises(ValueError, match=r"^dropout_rng is missing, .*write dropout_rng=jax"):
        linen_attention_fn(query, key, value, dropout_rate=0.5)


def test_every_keyword_of_flax_is_known():
    import inspect

    ours = set(inspect.signature(linen_attention_fn).parameters)
    assert set(inspect.signature(nn.dot_product_attention).parameters) <= ours
    assert set(inspect.signature(nnx.dot_product_attention).parameters) <= ours


def test_causal_decoding_is_refused_and_decoding_without_it_equals_a_full_pass():
    (x,) = draw(0, (2, 6, 12))
    layer = nnx.MultiHeadAttention(3, 12, decode=False, attention_fn=nnx_attention_fn, rngs=nnx.Rngs(0))
    full = layer(x, is_causal=True)
    query, key, value = draw(1, (2, 1, 3, 4), (2, 6, 3, 4), (2, 6, 3, 4))
    # Flax 0.12.8 passes is_causal on in decoding; newer ones do not.
    with pytest.raises(ValueError, match="is_causal=True with 1 query and 6 keys would mask all keys but the first"):
        nnx_attention_fn(query, key, value, mask=jnp.ones((2, 1, 1, 6), bool), is_causal=True)
    layer.init_cache(x.shape)
    rows = [layer(x[:, t : t + 1], decode=True) for t in range(6)]
    chex.assert_trees_all_close(jnp.concatenate(rows, 1), full, atol=1e-5)
