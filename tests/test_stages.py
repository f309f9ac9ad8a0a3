import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxattn import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    SimpleSelfAttention,
    attention_weights,
    parallel_from_stacked,
    renormalized_weights,
)

STAGES = {
    "simple": SimpleSelfAttention(),
    "trainable": SelfAttention(features=4),
    "causal": CausalAttention(features=4, dropout_rate=0.5),
    "stacked": MultiHeadAttentionWrapper(num_heads=3, features=2, dropout_rate=0.5),
    "parallel": MultiHeadAttention(num_heads=2, features=6, dropout_rate=0.5),
}
CAUSAL = {name: STAGES[name] for name in ("causal", "stacked", "parallel")}
WIDTH = {"simple": 5, "trainable": 4, "causal": 4, "stacked": 6, "parallel": 6}
each_stage = pytest.mark.parametrize("name", STAGES)
each_causal_stage = pytest.mark.parametrize("name", CAUSAL)
parallel = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)


def tokens(seed=0, shape=(7, 5), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def variables_of(module, x, dtype=jnp.float32):
    """Parameters away from their symmetric start: biases too are random."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree.map(lambda p: jnp.asarray(0.5 * rng.standard_normal(p.shape), dtype), shapes)


def kernels(numbers, **more):
    names = {"W_query": "query", "W_key": "key", "W_value": "value"}
    return {"params": {ours: {"kernel": jnp.array(numbers[its])} for its, ours in names.items()} | more}


class BookTest(chex.TestCase, parameterized.TestCase):
    """Every stage gives the chapter's numbers to four decimals."""

    @pytest.fixture(autouse=True)
    def _book(self, book):
        self.book = book
        self.x = jnp.array(book["inputs"])

    def reproduces(self, module, variables, numbers):
        apply = self.variant(functools.partial(module.apply, return_weights=True))
        context, weights = apply(variables, self.x)
        chex.assert_trees_all_close(context, jnp.array(numbers["context"]), atol=5e-5)
        if "weights" in numbers:
            chex.assert_trees_all_close(weights, jnp.array(numbers["weights"]), atol=5e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_simple(self):
        self.reproduces(SimpleSelfAttention(), {}, self.book["simple"])
        second = self.variant(SimpleSelfAttention().apply)({}, self.x)[1]
        assert [f"{number:.4f}" for number in second] == ["0.4419", "0.6515", "0.5683"]

    @chex.variants(with_jit=True, without_jit=True)
    def test_trainable(self):
        for version in ("self_attention_v1", "self_attention_v2"):
            self.reproduces(SelfAttention(features=2), kernels(self.book[version]), self.book[version])

    @chex.variants(with_jit=True, without_jit=True)
    def test_both_ways_to_the_causal_mask(self):
        numbers = self.book["causal_mask_on_v2"]
        scores = jnp.array(self.book["self_attention_v2"]["scores"])
        for way in (attention_weights, renormalized_weights):
            weights = self.variant(way)(scores, jnp.tril(jnp.ones((6, 6), bool)), scale=2**-0.5)
            chex.assert_trees_all_close(weights, jnp.array(numbers["causal_weights"]), atol=5e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_causal(self):
        self.reproduces(
            CausalAttention(features=2), kernels(self.book["causal_attention"]), self.book["causal_attention"]
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_stacked_heads(self):
        numbers = self.book["multi_head_wrapper"]
        params = {f"heads_{i}": kernels(head)["params"] for i, head in enumerate(numbers["heads"])}
        self.reproduces(MultiHeadAttentionWrapper(num_heads=2, features=2), {"params": params}, numbers)

    @chex.variants(with_jit=True, without_jit=True)
    def test_parallel_heads(self):
        numbers = self.book["multi_head_attention"]
        out = {"kernel": jnp.array(numbers["out_proj_kernel"]), "bias": jnp.array(numbers["out_proj_bias"])}
        self.reproduces(MultiHeadAttention(num_heads=2, features=2), kernels(numbers, out=out), numbers)


@each_stage
def test_the_same_under_jit_vmap_checkpoint_and_with_batch_axes(name):
    module, xs = STAGES[name], tokens(shape=(2, 3, 7, 5))
    variables = variables_of(module, xs)
    apply = functools.partial(module.apply, variables)
    expected = apply(xs)
    chex.assert_shape(expected, (2, 3, 7, WIDTH[name]))
    for way in (apply, jax.vmap(jax.vmap(apply)), jax.checkpoint(apply)):
        parallel(jax.jit(way)(xs), expected)
    loss = lambda apply: lambda xs: (apply(xs) ** 2).sum()  # noqa: E731
    parallel(*(jax.jit(jax.grad(loss(way)))(xs) for way in (jax.checkpoint(apply), apply)))


@each_stage
def test_the_smallest_sequences_and_batches(name):
    module = STAGES[name]
    variables = variables_of(module, tokens())
    assert module.apply(variables, tokens(shape=(1, 5))).shape == (1, WIDTH[name])
    assert module.apply(variables, tokens(shape=(0, 5))).shape == (0, WIDTH[name])
    output, weights = module.apply(variables, tokens(shape=(0, 7, 5)), return_weights=True)
    assert output.shape == (0, 7, WIDTH[name])
    assert weights.shape in [(0, 7, 7), (0, 2, 7, 7), (0, 3, 7, 7)]


@each_stage
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_type_that_goes_in_comes_out_near_the_float64_result(name, dtype):
    with jax.enable_x64(True):
        x = tokens(dtype=jnp.float64)
        variables = variables_of(STAGES[name], x)
        output = STAGES[name].apply(variables, x.astype(dtype))
        assert output.dtype == dtype
        np.testing.assert_allclose(
            output.astype(jnp.float64), STAGES[name].apply(variables, x), atol=30 * float(jnp.finfo(dtype).eps)
        )


@each_stage
def test_vectors_of_length_ten_thousand_give_no_nan(name):
    x = 100 * jnp.sign(tokens())
    output = STAGES[name].apply(variables_of(STAGES[name], x), x)
    chex.assert_tree_all_finite(output)


STEPS = {
    "simple": {"scores", "weights", "context"},
    "trainable": {"queries", "keys", "values", "scores", "weights", "context"},
    "causal": {"queries", "keys", "values", "scores", "weights", "kept_weights", "context"},
    "stacked": {"heads_0", "heads_1", "heads_2"},
    "parallel": {"queries", "keys", "values", "scores", "weights", "kept_weights", "context"},
}


@each_stage
def test_steps_are_sown_where_intermediates_are_collected(name):
    module, x = STAGES[name], tokens()
    variables = module.init(jax.random.key(0), x)
    assert "intermediates" not in variables
    output, state = module.apply(variables, x, False, jax.random.key(1), mutable=["intermediates"])
    same, weights = module.apply(variables, x, False, jax.random.key(1), return_weights=True)
    sown = state["intermediates"]
    assert set(sown) == STEPS[name]
    assert not set(sown) & {"query", "key", "value", "out"}  # names of submodules
    heads = [sown[f"heads_{i}"] for i in range(3)] if name == "stacked" else [sown]
    parallel(output, same)
    parallel(np.squeeze([head["weights"][0] for head in heads]), weights)
    joined = np.concatenate([head["context"][0].reshape(7, -1) for head in heads], axis=-1)
    if name == "parallel":
        joined = nn.Dense(6).apply({"params": variables["params"]["out"]}, joined)
    parallel(joined, output)
    for head in heads if name in CAUSAL else []:
        kept = head["kept_weights"][0]
        assert 0 < (kept == 0).sum() - (head["weights"][0] == 0).sum() < kept.size


@given(name=st.sampled_from(sorted(CAUSAL)), T=st.integers(2, 9), t=st.integers(0, 8), seed=st.integers(0, 2**31 - 1))
def test_no_future_token_changes_a_past_output_to_the_last_bit(name, T, t, seed):
    t = t % T
    module, x = CAUSAL[name], tokens(seed, (T, 5))
    variables = variables_of(module, x)
    other = x.at[t:].set(tokens(seed + 1, (T - t, 5)))
    for options in ({"deterministic": False, "dropout_key": jax.random.key(seed)}, {}):
        apply = jax.jit(lambda x, options=options: module.apply(variables, x, **options))
        before, after = np.asarray(apply(x)), np.asarray(apply(other))
        np.testing.assert_array_equal(before[:t], after[:t])
    assert (before[t:] != after[t:]).any()


@each_causal_stage
def test_future_tokens_have_zero_gradient(name):
    module, x = CAUSAL[name], tokens()
    variables = variables_of(module, x)
    # (t_out, width, t_in, d_in)
    jacobian = np.abs(jax.jacrev(functools.partial(module.apply, variables))(x)).sum((1, 3))
    assert (np.triu(jacobian, k=1) == 0).all()
    assert (np.tril(jacobian) > 0).sum() == 7 * 8 / 2


@each_causal_stage
def test_there_is_no_mask_among_the_variables(name):
    variables = CAUSAL[name].init(jax.random.key(0), tokens())
    assert set(variables) == {"params"}
    paths = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert paths <= {"kernel", "bias"}


@each_causal_stage
def test_dropout_takes_a_key_or_the_stream_and_follows_it(name):
    module, x = CAUSAL[name], tokens()
    variables = variables_of(module, x)
    drop = functools.partial(module.apply, variables, x, deterministic=False)
    key, other = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(drop(dropout_key=key), drop(dropout_key=key))
    np.testing.assert_array_equal(drop(rngs={"dropout": key}), drop(rngs={"dropout": key}))
    assert (drop(dropout_key=key) != drop(dropout_key=other)).any()
    assert (drop(rngs={"dropout": key}) != drop(rngs={"dropout": other})).any()
    np.testing.assert_array_equal(module.apply(variables, x, dropout_key=key), module.apply(variables, x))
    _, weights = drop(dropout_key=key, return_weights=True)
    parallel(weights.sum(-1), np.ones(weights.shape[:-1]))


@each_causal_stage
def test_vmap_over_the_batch_with_split_keys_drops_other_entries_in_each_example(name):
    module, x = CAUSAL[name], tokens()
    variables = variables_of(module, x)
    apply = lambda x, key: module.apply(variables, x, deterministic=False, dropout_key=key)  # noqa: E731
    outputs = jax.vmap(apply, in_axes=(None, 0))(x, jax.random.split(jax.random.key(0), 4))
    assert len({np.asarray(output).tobytes() for output in outputs}) == 4
    # Batch axes and nn.vmap with a split stream do so too.
    batched = apply(jnp.stack([x] * 4), jax.random.key(0))
    mapped = nn.vmap(
        type(module), variable_axes={"params": None}, split_rngs={"params": False, "dropout": True}, in_axes=(0, None)
    )
    fields = {name: getattr(module, name) for name in module.__dataclass_fields__ if name not in ("parent", "name")}
    streamed = mapped(**fields).apply(variables, jnp.stack([x] * 4), False, rngs={"dropout": jax.random.key(0)})
    for outputs in (batched, streamed):
        assert len({np.asarray(output).tobytes() for output in outputs}) == 4


class Layer(nn.Module):
    """A residual layer, as `nn.scan` wants it."""

    stage: str
    remat: bool = False

    @nn.compact
    def __call__(self, x, deterministic):
        module = {
            "simple": SimpleSelfAttention,
            "trainable": functools.partial(SelfAttention, 5),
            "causal": functools.partial(CausalAttention, 5, 0.5),
            "stacked": functools.partial(MultiHeadAttentionWrapper, 1, 5, 0.5),
            "parallel": functools.partial(MultiHeadAttention, 5, 5, 0.5),
        }[self.stage]
        if self.remat:
            module = (
                functools.partial(nn.remat(module.func, static_argnums=(2,)), *module.args)
                if hasattr(module, "func")
                else nn.remat(module, static_argnums=(2,))
            )
        return x + module(name="attention")(x, deterministic), None


@pytest.mark.slow
@each_stage
def test_scan_and_remat_over_layers(name):
    x = tokens()
    results = []
    for remat in (False, True):
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=3,
        )(name, remat)
        variables = scanned.init(jax.random.key(0), x, True)

        @functools.partial(jax.jit, static_argnums=1)
        def run(variables, deterministic, scanned=scanned):
            return scanned.apply(variables, x, deterministic, rngs={"dropout": jax.random.key(1)})[0]

        gradient = jax.grad(lambda v, run=run: (run(v, False) ** 2).sum())(variables)
        results.append((run(variables, True), run(variables, False), gradient))
        expected = x
        for layer in range(3):
            one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], variables)
            expected = Layer(name).apply(one, expected, True)[0]
        parallel(results[-1][0], expected)
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-4)


@given(
    num_heads=st.integers(1, 4),
    features=st.integers(1, 4),
    use_bias=st.booleans(),
    T=st.integers(1, 6),
    d=st.integers(1, 5),
)
def test_stacked_heads_equal_parallel_heads(num_heads, features, use_bias, T, d):
    x = tokens(shape=(2, T, d))
    stacked = MultiHeadAttentionWrapper(num_heads, features, use_bias=use_bias)
    variables = variables_of(stacked, x)
    params = parallel_from_stacked(variables["params"])
    expected, weights = jax.jit(functools.partial(stacked.apply, return_weights=True))(variables, x)
    module = MultiHeadAttention(num_heads, num_heads * features, use_bias=use_bias)
    chex.assert_trees_all_equal_shapes(params, variables_of(module, x)["params"])
    came, same = jax.jit(functools.partial(module.apply, return_weights=True))({"params": params}, x)
    parallel(came, expected)
    parallel(same, weights)


@given(num_heads=st.integers(1, 3), D=st.integers(1, 4), T=st.integers(1, 6), seed=st.integers(0, 2**31 - 1))
def test_agrees_with_flax_given_the_same_weights(num_heads, D, T, seed):
    x, features = tokens(seed, (2, T, 5)), num_heads * D
    ours = MultiHeadAttention(num_heads, features, use_bias=True)
    params = variables_of(ours, x)["params"]
    split = {
        name: {
            "kernel": params[name]["kernel"].reshape(5, num_heads, D),
            "bias": params[name]["bias"].reshape(num_heads, D),
        }
        for name in ("query", "key", "value")
    }
    split["out"] = {"kernel": params["out"]["kernel"].reshape(num_heads, D, features), "bias": params["out"]["bias"]}
    flax = nn.MultiHeadDotProductAttention(num_heads, qkv_features=features, out_features=features)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(flax.apply)({"params": split}, x, mask=jnp.tril(jnp.ones((2, 1, T, T), bool)))
    parallel(jax.jit(ours.apply)({"params": params}, x), expected)


@each_stage
def test_gradients_match_finite_differences(name):
    with jax.enable_x64(True):
        x = tokens(shape=(4, 5), dtype=jnp.float64)
        variables = variables_of(STAGES[name], x, jnp.float64)
        key = jax.random.key(0)
        apply = jax.jit(lambda v, x: STAGES[name].apply(v, x, deterministic=False, dropout_key=key))
        check_grads(apply, (variables, x), order=1, rtol=1e-6)


X = jnp.ones((3, 4))


def init(module, x=X, **options):
    return lambda: module.init(jax.random.key(0), x, **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            init(MultiHeadAttention(3, 10)),
            ValueError,
            "features=10 is the total width of 3 heads.*features=9 or features=12",
        ),
        (init(MultiHeadAttention(0, 10)), ValueError, "num_heads=0"),
        (init(MultiHeadAttentionWrapper(0, 10)), ValueError, "num_heads=0"),
        (init(SelfAttention(0)), ValueError, "features=0"),
        (init(CausalAttention(2, 1.0)), ValueError, r"dropout_rate=1.0 is outside \[0, 1\)"),
        (init(MultiHeadAttention(1, 2, -0.5)), ValueError, "dropout_rate=-0.5"),
        (init(CausalAttention(2, 0.5), deterministic=False), ValueError, "CausalAttention.*dropout_key=jax.random.key"),
        (init(MultiHeadAttention(1, 2, 0.5), deterministic=False), ValueError, 'MultiHeadAttention.*rngs={"dropout"'),
        (init(MultiHeadAttentionWrapper(1, 2, 0.5), deterministic=False), ValueError, "no key"),
        (init(SimpleSelfAttention(), X.astype(int)), TypeError, "x has dtype int32.*embedding"),
        (init(MultiHeadAttention(1, 2), X[0]), ValueError, r"x has shape \(4,\)"),
        (lambda: parallel_from_stacked({"query": {}}), ValueError, "heads_0"),
    ],
)
def test_bad_input_is_named_with_what_to_write(call, error, words):
    with pytest.raises(error, match=words):
        call()


@each_stage
def test_64_bit_mode_numpys_integers_and_raw_keys_change_nothing(name):
    module, x, key = STAGES[name], tokens(), jax.random.key(2)
    variables = variables_of(module, x)
    expected = module.apply(variables, x, False, key)
    sizes = {size: np.int64(getattr(module, size)) for size in ("num_heads", "features") if hasattr(module, size)}
    raw_key = np.asarray(jax.random.key_data(key))  # as a checkpoint restores it
    with jax.enable_x64(True):
        came = module.clone(**sizes).apply(variables, x, False, raw_key)
    assert came.dtype == jnp.float32
    np.testing.assert_allclose(came, expected, atol=1e-6)
