import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.core.permutation import shuffled


@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_each_example_comes_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(np.arange(count), count, (seed, epoch)).tolist()) == list(range(count))


def test_an_order_of_a_trillion_examples_is_a_function_of_seed_epoch_and_place() -> None:
    count = 10**12
    places = np.random.default_rng(0).integers(0, count, 1000)
    order = shuffled(places, count, (1, 0))
    assert order.min() >= 0
    assert order.max() < count
    assert len(set(order.tolist())) == len(set(places.tolist()))
    np.testing.assert_array_equal(order[::-1], shuffled(places[::-1], count, (1, 0)))
    for other in ((1, 1), (2, 0)):
        assert (shuffled(places, count, other) != order).all()


def test_an_order_looks_random() -> None:
    """Kolmogorov and Smirnov's statistic of what neighbours differ by, and of where the first tenth goes."""
    from scipy import stats  # noqa: PLC0415

    count = 100_000
    order = shuffled(np.arange(count), count, (3, 0))
    assert stats.kstest(order[: count // 10] / count, "uniform").pvalue > 0.001
    assert stats.kstest(np.diff(order) % count / count, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(np.arange(count), order)[0, 1]) < 0.02
