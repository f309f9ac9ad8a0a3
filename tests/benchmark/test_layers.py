import pytest

from jaxattn.benchmark.cases import Case
from jaxattn.benchmark.layers import compare_layers
from jaxattn.benchmark.measure import check_agreement


@pytest.mark.parametrize("backward", [False, True])
def test_all_layers_of_a_comparison_compute_the_same(backward):
    comparisons = {each.group: each for each in compare_layers(Case("causal", 2, 5, 2, 4, backward))}
    names = {candidate.name for candidate in comparisons["4 multi-head, causal"].candidates}
    assert {"flax.linen", "flax.nnx"} < names
    for comparison in comparisons.values():
        check_agreement(comparison.candidates, 1e-4)
