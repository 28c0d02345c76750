"""Opens ports at addresses on the running reactor."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol

from netsvc.listen.opening import ListenError, listen
from netsvc.listen.port import OpenPort
from netsvc.plan.address import parse_address


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor


def opened(text: str, kind: Any = "stream", reactor: Any = None) -> OpenPort:
    """Open a port that serves nothing in particular; raises what opening raises."""
    protocol: Any = Factory.forProtocol(Protocol) if kind == "stream" else DatagramProtocol()
    if kind == "stream":
        protocol.noisy = False
    results: list[Any] = []
    listen(reactor or _reactor(), parse_address(text, kind), protocol).addBoth(results.append)
    [result] = results
    if not isinstance(result, OpenPort):
        result.raiseException()
    assert isinstance(result, OpenPort)
    return result


def refusal(text: str, kind: Any = "stream") -> str:
    """Return the line of the error with which an address is not opened."""
    with pytest.raises(ListenError) as raised:
        opened(text, kind)
    return str(raised.value)
