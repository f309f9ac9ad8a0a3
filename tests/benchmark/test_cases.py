import numpy as np
import pytest

from jaxattn.benchmark.cases import MASKS, Case, count_operations, count_unmasked, make_mask


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("T", "keys"), [(7, None), (24, None), (300, None), (3, 30)])
def test_the_work_is_what_the_mask_leaves(mask, T, keys):
    case = Case(mask, B=2, T=T, H=3, D=4, backward=True, keys=keys)
    made = make_mask(case)
    unmasked = np.asarray(np.ones((T, case.S)) if made is None else made.array(T, case.S)).sum()
    assert count_unmasked(case) == unmasked
    # Query times key and weights times value: 2 D operations for each entry; the gradients are five such products.
    assert count_operations(case) == 2 * 3 * unmasked * (2 + 5) * 2 * 4
    assert count_operations(case._replace(backward=False)) == 2 * 3 * unmasked * 2 * 2 * 4
