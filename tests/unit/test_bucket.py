"""A burst at once, and then so much a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.base.bucket import MOST_PEERS, Bucket, PeerBuckets


def admitted(buckets: PeerBuckets, peer: str, now: float) -> bool:
    if buckets.wait(peer, now):
        return False
    buckets.take(peer, now)
    return True


def test_a_burst_goes_at_once_and_then_so_much_a_second() -> None:
    bucket = Bucket(100, 200, 0.0)
    assert bucket.wait(200, 0.0) == 0
    bucket.take(150, 0.0)
    assert bucket.wait(50, 0.0) == 0
    assert bucket.wait(60, 0.0) == pytest.approx(0.1)
    assert bucket.wait(60, 0.1) == 0
    bucket.take(60, 0.1)
    assert bucket.wait(1, 0.1) == pytest.approx(0.01)
    assert bucket.wait(200, 60.0) == 0


def test_what_was_taken_and_was_not_there_has_to_come_back_first() -> None:
    bucket = Bucket(100, 100, 5.0)
    bucket.take(300, 5.0)
    assert bucket.wait(1, 5.0) == pytest.approx(2.01)
    assert bucket.wait(1, 7.0) == pytest.approx(0.01)


def test_more_than_a_bucket_holds_waits_until_it_is_full() -> None:
    bucket = Bucket(10, 10, 0.0)
    assert bucket.wait(1000, 0.0) == 0
    bucket.take(1000, 0.0)
    assert bucket.wait(1000, 0.0) == pytest.approx(100)
    assert bucket.wait(1000, 100.0) == 0


def test_a_clock_set_back_gives_nothing_and_costs_nothing() -> None:
    bucket = Bucket(2, 4, 1_000_000.0)
    bucket.take(4, 1_000_000.0)
    assert bucket.wait(1, 5.0) == 0.5
    assert bucket.wait(1, 5.5) == 0


@given(
    rate=st.floats(0.01, 1e6),
    burst=st.floats(1, 1e6),
    start=st.sampled_from([0.0, 1.7e9]),
    asked=st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1e6)), max_size=60),
)
def test_no_more_than_burst_and_rate_gets_through_and_waiting_as_told_is_enough(
    rate: float, burst: float, start: float, asked: list[tuple[float, float]]
) -> None:
    bucket = Bucket(rate, burst, start)
    now, taken = start, 0.0
    for gap, wanted in asked:
        now += gap
        amount = min(wanted, burst)
        if wait := bucket.wait(amount, now):
            assert wait <= burst / rate + 1e-6
            now += wait
            # A clock that counts in floating point may fall short by its last digit.
            if bucket.wait(amount, now) > 0:
                assert bucket.wait(amount, now) < 1e-5
                continue
        bucket.take(amount, now)
        taken += amount
        assert taken <= (burst + (now - start) * rate) * (1 + 1e-6) + 1e-5 * rate


def test_each_peer_has_a_burst_and_a_rate_of_its_own() -> None:
    buckets = PeerBuckets(2, 3, 0.0)
    assert [admitted(buckets, "a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert [admitted(buckets, "b", 0.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.wait("a", 0.0) == 0.5
    assert [admitted(buckets, "a", 0.5) for _ in range(2)] == [True, False]
    assert [admitted(buckets, "a", 99.0) for _ in range(4)] == [True, True, True, False]


def test_taking_what_is_not_there_leaves_an_empty_bucket() -> None:
    buckets = PeerBuckets(1, 2, 0.0)
    for _ in range(100):
        buckets.take("a", 0.0)
    assert buckets.wait("a", 0.0) == 1.0


def test_a_clock_set_back_makes_nobody_wait_longer_than_for_one_token() -> None:
    buckets = PeerBuckets(2, 4, 1_000_000.0)
    for _ in range(4):
        buckets.take("a", 1_000_000.0)
    assert buckets.wait("a", 5.0) == 0.5
    assert [admitted(buckets, "a", 5.5) for _ in range(2)] == [True, False]
    for _ in range(4):
        buckets.take("b", 5.5)
    buckets.take("b", 1.0)
    assert buckets.wait("b", 1.5) == 0


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 20),
    start=st.sampled_from([0.0, 1.7e9]),
    asked=st.lists(st.tuples(st.floats(0, 5), st.sampled_from("abcd")), max_size=120),
)
def test_to_forget_full_buckets_changes_nothing(
    rate: float, burst: int, start: float, asked: list[tuple[float, str]]
) -> None:
    buckets = PeerBuckets(rate, burst, start)
    exact: dict[str, Bucket] = {}
    now = start
    for gap, peer in asked:
        now += gap
        one = exact.setdefault(peer, Bucket(rate, burst, start))
        expected = one.wait(1, now)
        assert buckets.wait(peer, now) == pytest.approx(expected, abs=1e-4)
        if not buckets.wait(peer, now) and expected < 1e-4:
            buckets.take(peer, now)
            one.take(1, now)


def test_idle_peers_are_forgotten() -> None:
    buckets = PeerBuckets(10, 10, 0.0)
    for number in range(100):
        buckets.take(f"peer {number}", 0.5)
    buckets.take("later", 1.2)
    assert len(buckets) == 101
    buckets.take("later", 2.3)
    assert len(buckets) == 2
    buckets.take("last", 99.0)
    assert len(buckets) == 1


def test_a_flood_of_peers_does_not_outgrow_the_table() -> None:
    buckets = PeerBuckets(0.01, 5, 0.0)
    for number in range(3 * MOST_PEERS):
        buckets.take(f"peer {number}", 1.0)
        assert len(buckets) <= MOST_PEERS
    assert len(buckets) > MOST_PEERS // 2


def test_in_a_flood_a_limited_peer_that_goes_on_asking_stays_limited() -> None:
    buckets = PeerBuckets(0.01, 2, 0.0, most=100)
    assert [admitted(buckets, "limited", 0.0) for _ in range(3)] == [True, True, False]
    for number in range(1000):
        assert admitted(buckets, f"peer {number}", 1.0)
        if number % 40 == 0:
            assert not admitted(buckets, "limited", 1.0)


def test_in_a_flood_one_who_stays_away_is_forgotten_after_half_a_table() -> None:
    buckets = PeerBuckets(0.01, 1, 0.0, most=100)
    buckets.take("away", 0.0)
    for number in range(50):
        buckets.take(f"peer {number}", 1.0)
    assert buckets.wait("away", 1.0)
    for number in range(50, 200):
        buckets.take(f"peer {number}", 1.0)
    assert not buckets.wait("away", 1.0)


@pytest.mark.parametrize("rate", [0.01, 3, 7, 1e6])
def test_one_who_waits_as_long_as_reported_gets_a_token(rate: float) -> None:
    now = 1.7e9 + 0.1
    bucket = Bucket(rate, 1, now)
    for _ in range(100):
        tries = 0
        while wait := bucket.wait(1, now):
            now += wait
            tries += 1
            assert tries < 5
        bucket.take(1, now)
