import jax.numpy as jnp
import pytest

from jaxattn.benchmark.layers import layer_groups
from jaxattn.benchmark.measure import check_agreement, compiled, interleaved_medians


@pytest.mark.parametrize("backward", [False, True])
def test_all_layers_of_a_group_compute_the_same(backward):
    groups = layer_groups(2, 5, 2, 4, backward)
    assert {"flax.linen", "flax.nnx"} < {candidate.name for candidate in groups["4 multi-head, causal"]}
    for candidates in groups.values():
        check_agreement(candidates, 1e-4)


def test_a_wrong_result_is_not_timed():
    x = jnp.ones(3)
    right, wrong = compiled("right", lambda x: x, x), compiled("wrong", lambda x: x * 1.01, x)
    nothing = compiled("nothing", lambda x: x * jnp.nan, x)
    for other in (wrong, nothing):
        with pytest.raises(ValueError, match=f"{other.name} differs from right"):
            check_agreement([right, other], 1e-3)
    late = compiled("late", lambda x: (x, x * jnp.nan), x)
    with pytest.raises(ValueError, match="late differs"):
        check_agreement([compiled("two", lambda x: (x, x), x), late], 1e-3)
    assert check_agreement([right, right], 1e-3) == {"right": 0.0}


def test_every_candidate_gets_a_positive_time():
    x = jnp.ones(3)
    medians = interleaved_medians([compiled(name, lambda x: x + 1, x) for name in "ab"], 0.0)
    assert set(medians) == {"a", "b"}
    assert min(medians.values()) > 0
