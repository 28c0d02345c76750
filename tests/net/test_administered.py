"""A reload changes the admin address with everything else, or not at all."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.endpoints import _SystemdParser
from twisted.python.systemd import ListenFDs

from netsvc.plan.address import parse_address
from netsvc.plan.plan import AdminUse, Plan
from tests.builders.facts import states
from tests.builders.http import request
from tests.builders.processes import PATIENCE
from tests.builders.reloaded import ONE, RunningServer, plan, world

TCP = "one tcp 127.0.0.1:0"
WORDS = ("first-word-0123456789", "other-word-0123456789")


def administered(address: str | None, token_file: Path | None = None, *listeners: str) -> Plan:
    """Make a plan with an admin address, or none."""
    token = None if token_file is None else str(token_file)
    use = None if address is None else AdminUse(parse_address(address, "stream"), token)
    return replace(plan(ONE, *(listeners or (TCP,))), admin=use)


@contextmanager
def root(first: Plan) -> Iterator[RunningServer]:
    """Run what twistd would."""
    with world(first, application=True) as made:
        yield made


def admin_port(made: RunningServer) -> int:
    root: Any = made.root
    port = root.admin._server.listening[0].port
    return int(port.getHost().port)


def ask(made: RunningServer, port: int, token: str | None = None, client: socket.socket | None = None) -> str:
    """Ask whether it is ready, and return the status of the answer."""
    client = client or made.connect(port)
    headers = {"Host": "localhost", **({} if token is None else {"Authorization": f"Bearer {token}"})}
    client.setblocking(True)
    client.sendall(request("/ready", headers=headers))
    return made.receive(client).split()[1].decode()


def asker(made: RunningServer) -> Callable[..., str]:
    """Return what asks at the port that is open now, whatever is open later."""
    port = admin_port(made)
    return lambda *words, **more: ask(made, port, *words, **more)


def test_one_is_added_and_taken_away() -> None:
    with root(administered(None)) as made:
        made.reload(administered("127.0.0.1:0"))
        port = admin_port(made)
        assert ask(made, port) == "200"
        made.reload(administered(None))
        assert made.refused(port)
        # And once more: nothing of the first stands in its way.
        made.reload(administered(f"127.0.0.1:{port}"))
        assert ask(made, port) == "200"


def test_one_at_another_address_takes_the_place_of_the_first() -> None:
    with root(administered("127.0.0.1:0")) as made:
        before = admin_port(made)
        with socket.create_server(("127.0.0.1", 0)) as free:
            other = free.getsockname()[1]
        made.reload(administered(f"127.0.0.1:{other}"))
        assert made.refused(before) and ask(made, other) == "200"


def test_a_reload_without_a_change_cuts_off_nobody(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(WORDS[0])
    with root(administered("127.0.0.1:0", token)) as made:
        client = made.connect(admin_port(made))
        assert ask(made, 0, WORDS[0], client) == "200"
        made.reload(administered("127.0.0.1:0", token))
        assert ask(made, 0, WORDS[0], client) == "200"
        # What a user without privileges cannot read any more holds as it was.
        token.unlink()
        made.reload(administered("127.0.0.1:0", token))
        assert ask(made, 0, WORDS[0], client) == "200"


@pytest.mark.parametrize("same_file", [True, False])
def test_another_token_holds_at_the_same_socket(tmp_path: Path, same_file: bool) -> None:
    files = [tmp_path / "token", tmp_path / ("token" if same_file else "other")]
    files[0].write_text(WORDS[0])
    with root(administered("127.0.0.1:0", files[0])) as made:
        before = asker(made)
        assert [before(word) for word in WORDS] == ["200", "401"]
        files[1].write_text(WORDS[1])
        made.reload(administered("127.0.0.1:0", files[1]))
        assert asker(made)(WORDS[1]) == "200"
        assert [before(word) for word in WORDS] == ["401", "200"]


def test_a_reload_that_fails_leaves_the_old_one_answering(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(WORDS[0])
    with root(administered("127.0.0.1:0", token)) as made, socket.create_server(("127.0.0.1", 0)) as other:
        before = asker(made)
        taken = other.getsockname()[1]
        # The new address is in use.
        [mistake] = made.errors(administered(f"127.0.0.1:{taken}"))
        assert states(mistake, "admin ", f"127.0.0.1:{taken}: ", f"port {taken} is in use")
        assert before(WORDS[0]) == "200"
        # The admin address could be had, and a listener could not: on the same socket, and on another one.
        token.write_text(WORDS[1])
        for address in ("127.0.0.1:0", "localhost:0"):
            [mistake] = made.errors(administered(address, token, TCP, f"one tcp 127.0.0.1:{taken}"))
            assert f"port {taken} is in use" in mistake
            assert [before(word) for word in WORDS] == ["200", "401"]
        # The token is none.
        token.write_text("short")
        [mistake] = made.errors(administered("127.0.0.1:0", token))
        assert "16 to 1024 characters" in mistake
        assert before(WORDS[0]) == "200"


def test_a_socket_file_stays_where_its_socket_goes_on(tmp_path: Path) -> None:
    path, token = tmp_path / "admin", tmp_path / "token"
    token.write_text(WORDS[0])
    address = f"unix:{path}"

    def status(word: str | None = None) -> str:
        client = socket.socket(socket.AF_UNIX)
        made.clients.append(client)
        client.settimeout(PATIENCE)
        client.connect(str(path))
        return ask(made, 0, word, client)

    with root(administered(address)) as made:
        assert status() == "200"
        made.reload(administered(address, token))
        assert [status(), status(WORDS[0])] == ["401", "200"]
        with socket.create_server(("127.0.0.1", 0)) as other:
            assert made.errors(administered(address, None, TCP, f"one tcp 127.0.0.1:{other.getsockname()[1]}"))
        assert status(WORDS[0]) == "200"
        # Whoever opens a socket of systemd's finds it where it was, and not those of the admin address.
        assert type(_SystemdParser._sddaemon) is ListenFDs
    assert not path.exists()
