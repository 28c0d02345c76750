"""Tests for services: clients in memory, the clock, and one call that finds what production would refuse.

    from netsvc.testing import check_service, connect

    def test_shouts():
        client = connect(service)
        client.send(b"hello\\n")
        client.expect(b"HELLO\\n")

    def test_is_fit_for_production():
        check_service(service)

Everything happens in memory and at once, so tests are plain functions, for any test runner; with pytest, the fixtures
of `netsvc.pytest_plugin` stop what a test has started. docs/howto/testing.md shows both.
"""

from netsvc.testing.checks import Finding, FindingsError, check_service
from netsvc.testing.served import Client, DatagramClient, Received, Served, connect, connect_datagram, serve
from netsvc.testing.wire import MemoryReactor

__all__ = [
    "Client",
    "DatagramClient",
    "Finding",
    "FindingsError",
    "MemoryReactor",
    "Received",
    "Served",
    "check_service",
    "connect",
    "connect_datagram",
    "serve",
]
