"""The live page of a real server, in a real Chromium, while real connections come and go."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest
from selenium.webdriver.common.keys import Keys

from tests.builders.browser import Browser
from tests.builders.processes import PATIENCE, TWISTD, Server, connect, is_refused, read_all, read_exactly, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

NETSVC = str(Path(TWISTD).parent / "netsvc")
#: A name that a datagram peer may choose: that of its socket's file.
HOSTILE = '<img src=x onerror=document.title="owned">'
#: Bytes that a client sends, and how the page writes that.
SENT, WRITTEN = 12_345, "12.3 kB"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@contextmanager
def serving(directory: Path, *words: str) -> Iterator[Server]:
    """Run a server that is in a directory, and whatever follows it."""
    # Nobody reads the log meanwhile.
    command = [TWISTD, "-n", "--pidfile=", "netsvc", "--admin", "127.0.0.1:0", "--access", "off", *words]
    with Server(command, cwd=directory) as server:
        try:
            server.wait_for("ready$")
            yield server
        finally:
            # After an upgrade this one only stands for another, which it ends as well.
            if server.process.returncode is None and server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
                server.wait()


def visit(browser: Browser, server: Server) -> str:
    """Open the page, and wait until it lives; return where it is."""
    url = f"http://127.0.0.1:{server.port('admin')}"
    browser.look_like(1280, 1000)
    browser.driver.get("about:blank")
    browser.complaints()
    browser.driver.get(url)
    browser.until(lambda: browser.text("#link") == "live", "it does not live")
    browser.take_time()
    return url


def ready(server: Server) -> tuple[int, str]:
    """Ask as a load balancer does."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port("admin"), timeout=PATIENCE)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def peers(browser: Browser) -> list[str]:
    return list(browser.script("return [...document.querySelectorAll('#peers .peer')].map((each) => each.textContent)"))


def row(browser: Browser, peer: str) -> dict[str, str]:
    """Read the row of a peer, by the names of its cells; or nothing."""
    found = browser.script(
        "const row = [...document.querySelectorAll('#peers tbody tr')]"
        ".find((each) => each.querySelector('.peer').textContent === arguments[0]);"
        "return row ? [...row.cells].map((each) => [each.dataset.label || each.className, each.textContent]) : []",
        peer,
    )
    return dict(found)


def search(browser: Browser, words: str) -> None:
    field = browser.one("#search")
    field.clear()
    field.send_keys(words)


def number(browser: Browser, service: str, label: str) -> int:
    """Read what the listeners of a service and protocol have counted in all."""
    found = browser.script(
        "return [...document.querySelectorAll('#services tbody tr')]"
        ".filter((each) => each.cells[0].textContent.startsWith(arguments[0]))"
        ".map((each) => each.querySelector(`[data-label=${arguments[1]}]`).textContent)",
        service,
        label,
    )
    return sum(int(each.replace(",", "")) for each in found)


def talk(connection: socket.socket, size: int = SENT) -> str:
    """Send so much and read it back; return who the server sees."""
    connection.sendall(b"x" * size)
    assert len(read_exactly(connection, size)) == size
    return "{}:{}".format(*connection.getsockname())


def is_served(port: int, clients: ExitStack) -> bool:
    """Tell whether the server lets one more client in, which stays."""
    try:
        talk(clients.enter_context(connect(port)), 5)
    except (ConnectionError, AssertionError):
        return False
    return True


class Coming:
    """Connects to a UNIX socket, talks and goes again, from a thread of its own, until it is left."""

    def __init__(self, path: Path) -> None:
        self.talked = 0
        self._path = str(path)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ending.wait(0.01):
            # While it drains nobody is there.
            with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(self._path)
                client.sendall(b"hello")
                self.talked += read_exactly(client, 5) == b"hello"

    def __enter__(self) -> Coming:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()


@contextmanager
def datagram_peer(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE)
        peer.bind(HOSTILE)
        peer.connect(path)
        peer.send(b"hello")
        assert peer.recv(10) == b"hello"
        yield peer


def close_by_page(browser: Browser, peer: str) -> None:
    """Press the button of a peer, twice; nothing that comes or goes moves it away meanwhile."""
    search(browser, peer)
    browser.until(lambda: peers(browser) == [peer], f"{peer} is not found")
    button = browser.one("#peers tbody button")
    button.click()
    assert button.text == "Sure?"
    button.click()
    browser.until(lambda: browser.text("#message") == f"Closed {peer}", "it was not closed")


def drain_by_page(browser: Browser) -> None:
    """Press Drain, and say no; press it again, and say yes."""
    browser.one("[data-command=drain]").click()
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.until(lambda: not browser.one("#ask").is_displayed())
    assert browser.text("#state") == "Ready"
    browser.one("[data-command=drain]").click()
    assert browser.text("#ask-title") == "Drain and stop?"
    browser.one("#ask-yes").click()


WORKERS: Sequence[Sequence[str]] = ((), ("--workers", "2"))


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "two workers"])
def test_what_really_happens_is_shown_and_done(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Sequence[str]
) -> None:
    # A short name of the socket's file, and nothing else, is the peer's.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "hello.txt").write_bytes(b"x" * SENT)
    # Rooms are not for several processes, and two would count their peers apart.
    chat = () if workers else ("--chat", "guard:connections=1:127.0.0.1:0")
    words = (
        *("--tcp", "guard:perip=3:127.0.0.1:0", "--udp", "127.0.0.1:0"),
        *("--echo-tcp", "unix:stream", "--echo-udp", "unixgram:datagrams"),
        *("--files", "127.0.0.1:0", "--files-root", "root", "--drain", "600", *chat, *workers),
    )
    with (
        serving(tmp_path, *words) as server,
        Coming(tmp_path / "stream") as coming,
        datagram_peer("datagrams"),
        ExitStack() as clients,
    ):
        url = visit(browser, server)
        assert browser.text("#state") == "Ready"
        assert ready(server) == (200, "ready\n")
        assert len(browser.all("#processes tbody tr")) == (3 if workers else 1)

        # A connection, as it is.
        client = clients.enter_context(connect(server.port("echo tcp")))
        peer = talk(client)
        search(browser, peer)
        seen = browser.until(lambda: row(browser, peer), "the client is not shown")
        browser.until(lambda: row(browser, peer)["In"] == row(browser, peer)["Out"] == WRITTEN, "other bytes")
        assert re.fullmatch(r"\d+s", seen["Age"])
        assert seen["service"].startswith("echo tcp")
        assert seen["Worker"] in (("1", "2") if workers else ("0",))
        browser.until(lambda: row(browser, peer)["Age"] != seen["Age"], "it does not get older")

        # A terminal beside it has the same words and numbers.
        told = run(NETSVC, "status", "--once", "--pid", str(server.process.pid), peer, env={"COLUMNS": "80"})
        lines = told.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0].startswith(f"netsvc {browser.text('#version')}  ready  pid {server.process.pid}  ")
        [line] = [each for each in lines if each.startswith(f"{peer} ")]
        assert " echo tcp " in line
        assert re.search(rf" {WRITTEN} +{WRITTEN} ", line)
        assert not workers or line.split()[-1] == seen["Worker"]

        # Others come, are served, and go.
        before = number(browser, "echo tcp", "Accepted")
        browser.until(lambda: number(browser, "echo tcp", "Accepted") > before, "nobody comes")
        with connect(server.port("files classic")) as download:
            download.sendall(b"hello.txt\n")
            assert len(read_all(download)) == SENT
        browser.until(lambda: number(browser, "files classic", "Accepted") == 1, "the download is not counted")

        # Refused: of one address there may be three, in each worker.
        assert sum(not is_served(server.port("echo tcp"), clients) for _ in range(7)) >= 2
        browser.until(lambda: "perip" in browser.text("#reasons"), "no refusal is shown")
        browser.until(lambda: number(browser, "echo tcp", "Refused") >= 1)
        assert "127.0.0.1perip refused, echo tcp" in browser.text("#refusals tbody")
        if chat:
            place = server.port("chat line")
            with connect(place) as member:
                assert member.recv(1)
                assert is_refused(place)
            browser.until(lambda: "connections" in browser.text("#reasons"))

        # Closed by a button: the client sees the end.
        close_by_page(browser, peer)
        assert client.recv(1) == b""
        # Its row stays under the pointer, crossed out.
        browser.until(lambda: not browser.all("#peers tbody tr:not(.gone)"), "it is still there")

        # A name that means harm is a name.
        search(browser, "ONERROR")
        browser.until(lambda: peers(browser) == [HOSTILE], "the peer is not found by other letters")
        assert browser.all("#peers img, #refusals img") == []
        assert row(browser, HOSTILE)["In"] == "5 B"
        # Where it came in: a datagram need not be UDP's.
        assert row(browser, HOSTILE)["service"].endswith("datagrams")
        assert "owned" not in browser.driver.title
        close_by_page(browser, HOSTILE)
        assert "owned" not in browser.driver.title
        assert browser.complaints() == []
        assert coming.talked > 0

        # Drained, after a question.
        drain_by_page(browser)
        browser.until(lambda: browser.text("#state") == "Draining", "it does not say that it drains")
        status, line = ready(server)
        assert status == 503
        assert "drain" in line
        # They have kept it from ending.
        clients.close()
        browser.until(lambda: browser.text("#link") == "connection lost, trying again", "it seems to be there")
        assert browser.all("body.stale")
        assert server.wait() in (0, -signal.SIGTERM)
        assert url in browser.driver.current_url


@pytest.mark.parametrize("workers", WORKERS, ids=["one process", "two workers"])
def test_it_goes_on_by_itself_after_an_upgrade(browser: Browser, tmp_path: Path, workers: Sequence[str]) -> None:
    with serving(tmp_path, "--tcp", "127.0.0.1:0", "--drain", "1", *workers) as server:
        visit(browser, server)
        pids = "return [...document.querySelectorAll('#processes tbody tr')].map((each) => each.cells[0].textContent)"
        before = browser.script(pids)
        upgraded = run(NETSVC, "upgrade", "--pid", str(server.process.pid))
        assert upgraded.returncode == 0, upgraded
        now = re.search(r"process (\d+) serves now", upgraded.stdout)
        assert now is not None
        browser.until(
            lambda: any(each.endswith(f"pid {now[1]}") for each in browser.script(pids)), "it shows the old process"
        )
        browser.until(lambda: browser.text("#link") == "live" and browser.text("#state") == "Ready")
        browser.until(lambda: not set(before) & set(browser.script(pids)), "old processes stay")
        with connect(server.port("echo tcp")) as client:
            peer = talk(client)
            browser.until(lambda: row(browser, peer), "who comes after the upgrade is not shown")
            close_by_page(browser, peer)
            assert client.recv(1) == b""
    # The page that has lost its server says so in the console as well.
    browser.complaints()


def test_a_page_with_a_token_asks_for_it(browser: Browser, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-word-nobody-guesses\n")
    os.chmod(token, 0o600)
    with serving(tmp_path, "--tcp", "127.0.0.1:0", "--admin-token", str(token)) as server:
        browser.driver.get(f"http://127.0.0.1:{server.port('admin')}")
        browser.until(lambda: browser.one("#login").is_displayed(), "it does not ask")
        browser.one("#token").send_keys("a-word-nobody-guesses", Keys.ENTER)
        browser.until(lambda: browser.text("#link") == "live")
        with connect(server.port("echo tcp")) as client:
            peer = talk(client)
            browser.until(lambda: row(browser, peer))
            close_by_page(browser, peer)
            assert client.recv(1) == b""
    browser.complaints()
