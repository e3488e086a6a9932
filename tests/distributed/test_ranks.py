import torch
from hypothesis import given
from hypothesis import strategies as st

from transcoders.distributed.ranks import Team

NUMBERS = st.lists(st.sampled_from([0.0, -0.0, 1e-40, 0.5, 1.0, 1.0 + 2**-23, 3e38]) | st.floats(0, 9, width=32))


@given(numbers=NUMBERS, k=st.integers(1, 12))
def test_the_kth_largest_is_found_digit_by_digit_and_is_0_if_there_are_fewer(numbers, k):
    values = torch.tensor(numbers, dtype=torch.float32)
    expected = values.topk(k).values[-1] if k <= len(values) else torch.zeros(())
    assert Team().kth_largest(values, k) == expected
