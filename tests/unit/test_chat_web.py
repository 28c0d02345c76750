"""The page of the chat, and who may connect to its WebSocket."""

from __future__ import annotations

import re
from typing import Any

import pytest

from netsvc.services.chat.web import WEBSOCKET, web_factory
from tests.builders.chat import build_core
from tests.builders.http import Transport, connect, read_replies, request
from tests.builders.irc import irc_client
from tests.builders.web import ASKING, WebClient


@pytest.fixture
def core() -> Any:
    return build_core()


def asks(core: Any, *requests: bytes) -> list[Any]:
    transport = connect(web_factory(core), Transport())
    transport.protocol.dataReceived(b"".join(requests))
    return read_replies(transport.take())


def test_the_page_has_all_that_it_refers_to_and_loads_nothing_from_elsewhere(core: Any) -> None:
    [page] = asks(core, request("/"))
    assert page.code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    referred = re.findall(rb'(?:src|href)="([^"]+)"', page.body)
    scripts = [name for name in referred if name.endswith(b".js")]
    assert scripts
    for name in referred:
        [reply] = asks(core, request(f"/{name.decode()}"))
        assert reply.code == 200
        assert reply.headers["content-type"].split(";")[0] != "text/html"
        for imported in re.findall(rb'from "\./([^"]+)"', reply.body):
            assert asks(core, request(f"/{imported.decode()}"))[0].code == 200


def test_a_page_that_is_known_is_not_sent_again(core: Any) -> None:
    [first] = asks(core, request("/page.js"))
    [again] = asks(core, request("/page.js", If_None_Match=first.headers["etag"]))
    assert (again.code, again.body) == (304, b"")
    [head] = asks(core, request("/page.js", method="OPTIONS"))
    assert (head.code, head.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/../page.js", "GET", 404), ("/%ff", "GET", 404), ("/", "DELETE", 405)],
)
def test_what_there_is_not_is_refused(core: Any, path: str, method: str, status: int) -> None:
    [reply] = asks(core, request(path, method=method))
    assert reply.code == status
    assert "content-security-policy" in reply.headers


def test_a_page_of_another_origin_may_connect_if_it_is_listed() -> None:
    asking = request("/", headers=ASKING | {"Origin": "https://other.example"})
    assert asks(build_core(), asking)[0].code == 403
    assert asks(build_core(web_origins="https://other.example"), asking)[0].code == 101
    assert asks(build_core(web_origins="https://third.example, *"), asking)[0].code == 101


def test_a_message_longer_than_a_line_of_irc_ends_the_connection(core: Any) -> None:
    client = WebClient(core)
    client.register("ada")
    client.sends("x" * (WEBSOCKET.message + 1))
    assert client.transport.disconnecting
    assert not list(core.members)


def test_a_message_with_line_ends_in_it_is_the_clients_own_lines(core: Any) -> None:
    ada, bob = WebClient(core).register("ada"), irc_client(core, "bob")
    ada.sends("JOIN #lobby")
    bob.sends("JOIN #lobby")
    ada.sends("JOIN #lobby")
    ada.sends("PRIVMSG #lobby :one\r\nPRIVMSG #lobby :two")
    got = [line.split(" ")[-1].lstrip(":") for line in bob.sees() if " PRIVMSG " in line]
    assert got == ["one", "two"]


def test_a_drain_says_goodbye_and_closes_every_connection(core: Any) -> None:
    idle = connect(web_factory(core), Transport())
    idle.protocol.dataReceived(request("/"))
    client = WebClient(core).register("ada")
    client.sees()
    core.drain()
    client.sees()
    assert client.transport.disconnecting
    assert idle.ended
    assert not list(core.members)
