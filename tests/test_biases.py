import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw, draw_heads, relative_error
from hypothesis import given
from hypothesis import strategies as st

from jaxattn import biases, dot_product_attention


def bucket_of(distance, num_buckets, bidirectional, max_distance):
    """T5's buckets, for one distance."""
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if distance > 0 else 0
    distance = abs(distance) if bidirectional else max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    steps = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    return first + min(exact + int(steps + 1e-6), num_buckets - 1)


@given(
    T=st.integers(0, 40), S=st.integers(0, 200), offset=st.integers(-5, 60), bidirectional=st.booleans(),
    traced=st.booleans(), max_distance=st.sampled_from([128, 19]),
)  # fmt: skip
def test_biases_follow_their_definitions(T, S, offset, bidirectional, traced, max_distance):
    slopes, table = draw(0, (3,), (32, 3))
    given = jnp.array([offset, offset + 1]) if traced else offset
    for n, one in enumerate([offset, offset + 1] if traced else [offset]):
        distances = np.arange(S)[None, :] - np.arange(T)[:, None] - one
        alibi = biases.Alibi(slopes, given).array(T, S)
        relative = biases.Relative(table, bidirectional, max_distance, offset=given).array(T, S)
        alibi, relative = (array[n] if traced else array for array in (alibi, relative))
        np.testing.assert_allclose(alibi, -np.asarray(slopes)[:, None, None] * np.abs(distances), rtol=1e-6)
        buckets = [[bucket_of(int(d), 32, bidirectional, max_distance) for d in row] for row in distances]
        buckets = np.array(buckets, int).reshape(T, S)
        np.testing.assert_array_equal(relative, np.moveaxis(np.asarray(table)[buckets], -1, 0))


def test_alibi_has_the_slopes_of_the_paper():
    np.testing.assert_allclose(biases.Alibi.for_heads(8).slopes, [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(biases.Alibi.for_heads(6).slopes, [2.0**-n for n in (2, 4, 6, 8, 1, 3)])


def test_an_int_as_offset_is_static_and_an_array_is_a_leaf():
    slopes, table = jnp.ones(2), jnp.ones((8, 2))
    for make in (lambda offset: biases.Alibi(slopes, offset), lambda offset: biases.Relative(table, offset=offset)):
        assert [len(jax.tree.leaves(make(offset))) for offset in (3, jnp.array(3), np.int32(3))] == [1, 2, 2]
        moved = jax.jit(lambda bias, n: bias.shifted(n).array(2, 3))(make(0), 3)
        np.testing.assert_array_equal(moved, make(3).array(2, 3))
        mapped = jax.vmap(lambda bias: bias.array(2, 3), (jax.tree.map(lambda _: None, make(0)),), axis_size=2)(make(0))
        assert mapped.shape == (2, 2, 2, 3)


def test_a_bias_is_the_array_of_its_entries_in_gradients_of_slopes_and_table_too():
    query, key, value = draw_heads(0)
    slopes, table = draw(1, (6,), (8, 6))
    offset = jnp.array([2, 0])
    for make, parameters in (
        (lambda slopes: biases.Alibi(slopes, offset), slopes),
        (lambda table: biases.Relative(table, max_distance=6, offset=offset), table),
    ):
        loss = lambda p, bias: (dot_product_attention(query, key, value, bias=bias(p)) ** 2).sum()  # noqa: E731
        came = jax.value_and_grad(loss)(parameters, make)
        expected = jax.value_and_grad(loss)(parameters, lambda p, make=make: make(p).array(5, 7))
        for a, b in zip(came, expected, strict=True):
            assert relative_error(a, np.asarray(b)) < 1e-5


HEADS = jnp.ones((2, 3, 4, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: biases.Alibi(jnp.ones((2, 2))), ValueError, r"slopes has shape \(2, 2\).*\(H,\)"),
        (lambda: biases.Alibi(jnp.ones(2, int)), TypeError, "slopes has dtype"),
        (lambda: biases.Alibi.for_heads(0), ValueError, "H=0"),
        (lambda: biases.Alibi.for_heads(True), ValueError, "H=True"),
        (lambda: biases.Alibi.for_heads(8.0), ValueError, "H=8.0"),
        (lambda: biases.Relative(jnp.ones(2)), ValueError, r"table has shape \(2,\).*num_buckets"),
        (lambda: biases.Relative(jnp.ones((3, 2))), ValueError, "3 buckets.*at least 4"),
        (lambda: biases.Relative(jnp.ones((32, 2)), max_distance=8), ValueError, "max_distance=8 must be.* above 8"),
        (lambda: biases.Relative(jnp.ones((32, 2)), max_distance=20.5), ValueError, "=20.5 must be an integer"),
        (lambda: biases.Alibi(jnp.ones(4), 1.5).array(2, 2), TypeError, "offset has dtype"),
        (lambda: attend(bias=biases.Alibi(jnp.ones(3))), ValueError, "bias is for 3 heads.*query has 4"),
        (lambda: attend(bias=biases.Alibi(jnp.ones(4), jnp.zeros(3, int))), ValueError, r"offset of shape \(3,\)"),
        (lambda: attend(sinks=jnp.ones(3)), ValueError, r"sinks has shape \(3,\).*\(4,\)"),
        (lambda: attend(sinks=jnp.ones(4, int)), TypeError, "sinks has dtype"),
        (lambda: attend(soft_cap=0.0), ValueError, "soft_cap=0.0 must be"),
        (lambda: attend(soft_cap=math.inf), ValueError, "soft_cap=inf must be"),
        (lambda: jax.jit(lambda cap: attend(soft_cap=cap))(3.0), TypeError, "soft_cap is .*plain number"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_what_to_write(call, error, words):
    with pytest.raises(error, match=words):
        call()


def attend(**options):
    return dot_product_attention(HEADS, HEADS, HEADS, **options)


def test_float64_slopes_and_tables_stay_float64():
    with jax.enable_x64(True):
        made = biases.Alibi(jnp.ones(2, jnp.float64)), biases.Relative(jnp.ones((8, 2), jnp.float64))
        assert [bias.array(3, 4).dtype for bias in made] == [jnp.float64] * 2
