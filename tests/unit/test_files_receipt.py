"""What the log says of an answer over HTTP: that it was sent, once the client's system has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from netsvc.services.files import receipt
from netsvc.services.files.download import BLOCK
from netsvc.services.files.receipt import INTERVAL, MOST_ANSWERS
from tests.builders.files import open_below, pattern
from tests.builders.files_http import FilesSite
from tests.builders.http import Transport, connect, request

BIG = 3 * BLOCK


class Client(FilesSite):
    """A site, and one client whose system has not acknowledged `left` bytes."""

    left: int | None = 1
    transport: Transport

    def get(self, target: str = "/big") -> None:
        if not hasattr(self, "transport"):
            self.transport = connect(self.factory, Transport())
        self.transport.protocol.dataReceived(request(target, headers={"Range": "bytes=0-"}))

    @property
    def said(self) -> list[str]:
        return [each[2] for each in self.results]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    made = Client(tmp_path)
    made.write("big", pattern(BIG))
    monkeypatch.setattr(receipt, "unacknowledged", lambda transport: made.left)
    yield made
    made.transport.end()
    made.factory.close()
    assert made.core.downloads == 0
    made.core.stop()
    assert made.clock.getDelayedCalls() == []
    assert open_below(tmp_path) == []


def test_a_file_has_been_sent_when_it_is_acknowledged(client: Client) -> None:
    client.get()
    client.clock.advance(10 * INTERVAL)
    assert client.said == []
    client.left = 0
    client.clock.advance(INTERVAL)
    assert client.results == [("big", BIG, "sent", "GET", 206)]
    # The time is that of the answer, not of the look.
    assert client.events[0]["seconds"] == 0


def test_the_next_request_and_the_end_of_the_clients_side_show_it_as_well(client: Client) -> None:
    client.get()
    client.left = 0
    client.get("/missing")
    assert client.said == ["sent", "no such file"]
    client.left = 1
    client.get()
    client.left = 0
    client.transport.protocol.readConnectionLost()
    assert client.said[2:] == ["sent"]


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_a_connection_that_ends_before_has_not_acknowledged_it(client: Client, reason: Exception) -> None:
    client.get()
    client.get()
    client.transport.protocol.connectionLost(Failure(reason))
    assert client.said == ["not acknowledged"] * 2
    client.transport.gone = True


def test_tls_ends_in_order_only_after_all_of_it(client: Client) -> None:
    client.get()
    client.transport.TLS = True  # type: ignore[attr-defined]
    client.transport.protocol.connectionLost(Failure(ConnectionDone()))
    assert client.said == ["sent"]
    client.transport.gone = True


def test_where_it_cannot_be_known_what_was_written_was_sent(client: Client) -> None:
    client.left = None
    client.get()
    assert client.said == ["sent"]


def test_answers_that_wait_are_limited(client: Client) -> None:
    for _ in range(MOST_ANSWERS + 2):
        client.get()
    assert client.said == ["not acknowledged"] * 2


def test_a_client_that_does_not_take_the_rest_of_an_answer_is_reset(client: Client) -> None:
    client.get("/missing")
    transport = client.transport
    transport.stays = True
    transport.loseConnection = lambda: None  # type: ignore[method-assign]
    transport.protocol.close()
    client.clock.advance(client.factory.times.linger + 1)
    client.clock.advance(client.factory.times.closing + 1)
    assert transport.aborted
