"""Tests for service plugins: the network in memory, and one call that checks a service against the contract.

`check_service(service)` is the test that every service should have. `build`, `connect` and `bind` put a service
on a network of memory for the tests that say what it does; docs/plugins.md shows both.
"""

from netsvc.testing.bench import Bench, bind, build, connect, load
from netsvc.testing.contract import Report, check_service
from netsvc.testing.watch import BreachError
from netsvc.testing.wire import FakeDatagramTransport, FakeTransport, MemoryReactor, attach

__all__ = [
    "Bench",
    "BreachError",
    "FakeDatagramTransport",
    "FakeTransport",
    "MemoryReactor",
    "Report",
    "attach",
    "bind",
    "build",
    "check_service",
    "connect",
    "load",
]
