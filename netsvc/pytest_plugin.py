"""Fixtures for the tests of a service. They import netsvc and Twisted when they are used, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from netsvc.testing import MemoryReactor, Served

__all__ = ["netsvc_clock", "netsvc_serve"]


@pytest.fixture
def netsvc_clock() -> MemoryReactor:
    """The clock of the services that `netsvc_serve` starts: `netsvc_clock.advance(seconds)`."""
    from netsvc.testing import MemoryReactor

    return MemoryReactor()


@pytest.fixture
def netsvc_serve(netsvc_clock: MemoryReactor) -> Iterator[Callable[..., Served]]:
    """`netsvc.testing.serve`, which starts a service in memory, at `netsvc_clock`.

    The services are stopped at the end of the test, which fails if one of them leaves a delayed call behind.
    """
    from netsvc.testing import serve

    started: list[Served] = []

    def start(service: Any, /, **how: Any) -> Served:
        started.append(serve(service, **{"clock": netsvc_clock, **how}))
        return started[-1]

    yield start
    for served in reversed(started):
        served.stop()
    left = [call for served in started for call in served.clock.getDelayedCalls()]
    assert not left, f"stop() leaves delayed calls behind: {left}"
