from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.rate import Bucket


def test_a_burst_goes_at_once_and_then_so_many_a_second() -> None:
    bucket = Bucket(rate=4, burst=3)
    assert [bucket.take(100.0) for _ in range(4)] == [0, 0, 0, 0.25]
    assert [bucket.take(100.25) for _ in range(2)] == [0, 0.25]
    assert [bucket.take(200.0) for _ in range(4)] == [0, 0, 0, 0.25]


def test_refusals_are_counted_until_the_bucket_has_been_full_again() -> None:
    bucket = Bucket(rate=1, burst=2)
    counts = []
    for now in (0, 0, 0, 0, 1, 1, 2.5, 2.5, 5, 5, 5):
        bucket.take(now)
        counts.append(bucket.refused)
    assert counts == [0, 0, 1, 2, 2, 3, 3, 4, 0, 0, 1]


def test_a_clock_set_back_empties_the_bucket_at_most() -> None:
    bucket = Bucket(rate=2, burst=3)
    bucket.take(1_000_000.0)
    assert 0 < bucket.take(5.0) <= 0.5
    assert [bucket.take(5.5) for _ in range(2)] == [0, 0.5]
    assert [bucket.take(7) for _ in range(4)] == [0, 0, 0, 0.5]


@settings(deadline=None)
@given(
    rate=st.floats(0.01, 1e6),
    burst=st.integers(1, 50),
    start=st.sampled_from([0.0, 1.7e9]),
    gaps=st.lists(st.floats(0, 3), max_size=60),
)
def test_waiting_as_long_as_told_is_enough_and_no_more_than_the_rate_gets_through(
    rate: float, burst: int, start: float, gaps: list[float]
) -> None:
    bucket = Bucket(rate, burst)
    now, taken = start, 0
    for gap in gaps:
        now += gap
        if wait := bucket.take(now):
            assert wait <= 1 / rate + 1e-5
            now += wait
            if left := bucket.take(now):
                # A clock that counts in floating point may fall short by its last digit.
                assert left < 1e-5
                continue
        taken += 1
        assert taken <= burst + (now - start) * rate * (1 + 1e-6) + 1e-3 * rate + 1e-3


@pytest.mark.parametrize("rate", [0.01, 3, 7, 1e6])
def test_one_who_waits_gets_on(rate: float) -> None:
    bucket, now = Bucket(rate, 1), 1.7e9 + 0.1
    for _ in range(100):
        tries = 0
        while wait := bucket.take(now):
            now += wait
            tries += 1
            assert tries < 5
