"""Access records for tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from netsvc.plan.limits import LIMITS
from netsvc.plan.record import REASONS, Record

NOON = 1_780_000_000.0

STREAM = Record(NOON, "echo", "tcp", "stream", "0.0.0.0:9001", "192.0.2.7", 5123, 6, 7, None, None, 1.25, "peer")
DATAGRAMS = Record(
    NOON, "echo", "udp", "datagram", "[::]:9001", "2001:db8::1", 53, 20, 0, 2, 0, 60.0, "limit", "sessions"
)
UNIX = Record(NOON, "files", "classic", "stream", "/run/a b", "uid 7", None, 0, 0, None, None, 0.0, "server")


def ended_by(reason: str, limit: str | None, record: Record = STREAM) -> Record:
    """Return a record of what has ended so."""
    return record._replace(reason=reason, limit=limit)


def records(names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Make any records, with any names where a peer, or whoever writes a plugin or a configuration, has a say."""
    counts = st.integers(0, 1 << 63)
    datagrams = st.none() | counts
    return st.builds(
        lambda taken, *fields: Record._make((*fields[:9], taken, taken, *fields[9:])),
        datagrams,
        st.floats(0, 4e9),
        names,
        names,
        st.sampled_from(["stream", "datagram"]),
        names,
        names,
        st.none() | st.integers(0, 65535),
        counts,
        counts,
        st.floats(0, 1e9),
        st.sampled_from(sorted(REASONS)),
        st.none() | st.sampled_from(sorted(LIMITS)),
    )
