"""The systems that are measured: how each is started as its users start it, and how it is asked whether it is up."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from benchmarks import configs
from benchmarks.generators import compiled, compiler
from benchmarks.process import ROOT, Running
from netsvc.plan.limits import DEFAULTS

__all__ = [
    "CHAT",
    "DATAGRAM",
    "FILES",
    "FILES_CONTROL",
    "HTTP",
    "HTTPS",
    "HTTP_CONTROL",
    "NETSVC",
    "STREAM",
    "TFTP",
    "TWISTD",
    "WORKERS",
    "Server",
    "Site",
    "from_checkout",
    "start",
]

NETSVC = "netsvc"
#: Where Debian keeps what only root runs, besides the user's own path.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
_TWISTD = str(Path(sysconfig.get_path("scripts"), "twistd"))
_HTTP = b"GET /small.bin HTTP/1.0\r\n\r\n"
#: Answered with an error, by some from another port.
_NO_SUCH_FILE = b"\0\1no such file\0octet\0"
_IRC = b"PASS secret\r\nNICK probe\r\nUSER probe 0 * :probe\r\n"


@dataclass(frozen=True)
class Site:
    """Where one server runs: its port, a directory for its own files, and the root of the files that it serves."""

    port: int
    directory: Path
    root: Path

    @property
    def address(self) -> str:
        """The address to listen on."""
        return f"127.0.0.1:{self.port}"


def _present() -> None:
    return None


@dataclass(frozen=True)
class Server:
    """A system under test.

    `probe` is what makes it answer, with anything at all. `absent` returns the line that says why it cannot run
    here, or None. `dialect` is what a load generator must know of it. `control` names the peer that it is a second
    copy of: the ratio of the two says how far to trust the others.
    """

    peer: str
    command: Callable[[Site], Sequence[str]]
    probe: bytes = b"x"
    datagram: bool = False
    absent: Callable[[], str | None] = _present
    dialect: tuple[str, ...] = ()
    environment: Callable[[Site], dict[str, str]] = field(default=lambda _site: {})
    cores: int = 1
    control: str | None = None

    def answers(self, port: int) -> bool:
        """Tell whether the server at `port` answers."""
        kind = socket.SOCK_DGRAM if self.datagram else socket.SOCK_STREAM
        with socket.socket(type=kind) as probe:
            # A server that has accepted has time to answer; a lost datagram is soon sent again.
            probe.settimeout(0.05 if self.datagram else 10)
            try:
                if self.datagram:
                    # Not connected: the answer may come from another port.
                    probe.sendto(self.probe, ("127.0.0.1", port))
                else:
                    probe.connect(("127.0.0.1", port))
                if probe.getsockname()[1] == port:
                    # The system has given it the very port that it asks for: it would answer itself.
                    return False
                if not self.datagram:
                    probe.sendall(self.probe)
                return bool(probe.recv(4096))
            except OSError:
                return False


def start(server: Server, site: Site, cores: Sequence[int]) -> tuple[Running, float]:
    """Start a server and wait until it answers; return it, and the seconds that took. Raises `BenchError`."""
    running = Running(
        server.peer, server.command(site), site.directory / "output.log", cores, dict(server.environment(site))
    )
    try:
        return running, running.await_answer(lambda: server.answers(site.port))
    except BaseException:
        running.stop()
        raise


def from_checkout(server: Server, directory: Path) -> Server:
    """Return a server of netsvc as it is in another checkout, to compare the two in one run."""
    return replace(
        server,
        peer=f"{server.peer} in {directory.name}",
        environment=lambda site: {**server.environment(site), "PYTHONPATH": str(directory)},
    )


def program(name: str) -> str:
    """Return the path of an installed program, or its bare name."""
    return shutil.which(name, path=_PATH) or name


def _package(name: str, package: str) -> Callable[[], str | None]:
    return lambda: (
        None if shutil.which(name, path=_PATH) else f"there is no {name} here (Debian: apt install {package})"
    )


def _netsvc(*words: str) -> Callable[[Site], Sequence[str]]:
    return lambda site: [
        *(_TWISTD, "-n", "--pidfile=", f"--logfile={site.directory}/netsvc.log", "netsvc"),
        *(word.format(address=site.address, root=site.root, directory=site.directory) for word in words),
    ]


@cache
def _no_workers() -> str | None:
    page = subprocess.run(
        [_TWISTD, "netsvc", "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return None if "--workers" in page.stdout else "this netsvc has no --workers"


def _no_uvloop() -> str | None:
    return None if find_spec("uvloop") else "uvloop is not installed: pip install 'netsvc[bench]'"


def _no_compiler() -> str | None:
    return None if compiler() else "there is no C compiler"


def _python(module: str, *words: str) -> Callable[[Site], Sequence[str]]:
    return lambda site: [sys.executable, "-m", module, *(word.format(port=site.port) for word in words)]


#: What users have by default, lifted; and everything that can be limited, none of it so far that the load meets it.
_NO_LIMITS = [word for name in DEFAULTS for word in ("--limit", f"{name}=none")]
_FAR = {
    **dict.fromkeys(("connections", "sessions", "perip", "burst", "peripburst"), "1000000"),
    **dict.fromkeys(("rate", "periprate", "datagrams"), "1000000"),
    **dict.fromkeys(("read", "write", "readall", "writeall"), "1000G"),
    **dict.fromkeys(("handshake", "idle", "sessionidle", "life"), "3600"),
    **{"pause": "1", "allow": "127.0.0.0/8", "deny": "192.0.2.0/24", "hours": "00:00-24:00", "amplify": "1"},
}
_EVERY_LIMIT = [word for name, value in _FAR.items() for word in ("--limit", f"{name}={value}")]


def _bare(kind: str, netsvc_option: str) -> tuple[Server, ...]:
    datagram = kind == "datagram"
    twisted, asyncio = "benchmarks.peers.twisted_echo", "benchmarks.peers.asyncio_echo"
    return (
        Server(NETSVC, _netsvc(netsvc_option, "{address}"), datagram=datagram),
        Server("netsvc, no limits", _netsvc(*_NO_LIMITS, netsvc_option, "{address}"), datagram=datagram),
        Server("netsvc, every limit", _netsvc(*_EVERY_LIMIT, netsvc_option, "{address}"), datagram=datagram),
        Server("Twisted", _python(twisted, kind, "{port}"), datagram=datagram),
        Server("netsvc's reactor", _python(twisted, kind, "{port}", "netsvc"), datagram=datagram),
        Server("asyncio", _python(asyncio, kind, "{port}", "asyncio"), datagram=datagram),
        Server("uvloop", _python(asyncio, kind, "{port}", "uvloop"), datagram=datagram, absent=_no_uvloop),
        Server(
            "C",
            lambda site: [compiled(f"{kind}_server"), "--port", str(site.port)],
            datagram=datagram,
            absent=_no_compiler,
        ),
    )


_COROUTINE = ROOT / "benchmarks/peers/coroutine_echo.py"

STREAM = (
    *_bare("stream", "--tcp"),
    Server("netsvc, a coroutine", _netsvc("--serve", f"{_COROUTINE}:service={{address}}")),
)
DATAGRAM = _bare("datagram", "--udp")

#: The least that runs below twistd.
TWISTD = Server(
    "twistd",
    lambda site: [
        *(_TWISTD, "-n", "--pidfile=", f"--logfile={site.directory}/echo.log"),
        *("-y", str(ROOT / "benchmarks/peers/twistd_echo.tac")),
    ],
    environment=lambda site: {"PORT": str(site.port)},
)

WORKERS = (
    STREAM[0],
    Server("netsvc, 2 workers", _netsvc("--workers", "2", "--tcp", "{address}"), absent=_no_workers, cores=2),
)


def _client_hello() -> bytes:
    """Return the first bytes of a TLS client."""
    sent = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


def _nginx(peer: str, control: str | None = None, *, tls: bool = False) -> Server:
    return Server(
        peer,
        lambda site: [program("nginx"), "-c", str(configs.nginx(site.port, site.directory, site.root, tls=tls))],
        probe=_client_hello() if tls else _HTTP,
        absent=_package("nginx", "nginx-light"),
        dialect=("--dialect", "http"),
        control=control,
    )


FILES = (
    Server(
        NETSVC,
        _netsvc("--files", "{address}", "--files-root", "{root}"),
        b"small.bin\n",
        dialect=("--dialect", "classic"),
    ),
    _nginx("nginx"),
    Server(
        "twistd web",
        lambda site: [
            *(_TWISTD, "-n", "--pidfile=", f"--logfile={site.directory}/web.log", "web"),
            *("--listen", f"tcp:{site.port}:interface=127.0.0.1", "--path", str(site.root)),
        ],
        probe=_HTTP,
        dialect=("--dialect", "http"),
    ),
    Server(
        "http.server",
        lambda site: [
            *(sys.executable, "-m", "http.server", str(site.port)),
            *("--bind", "127.0.0.1", "--directory", str(site.root)),
        ],
        probe=_HTTP,
        dialect=("--dialect", "http"),
    ),
)
#: nginx against nginx: how far two runs of one and the same are apart.
FILES_CONTROL = _nginx("nginx, again", control="nginx")

#: What all of them speak: HTTP/1.1, so that connections can be kept.
HTTP = (
    Server(
        NETSVC,
        _netsvc("--files-http", "{address}", "--files-root", "{root}"),
        _HTTP,
        dialect=("--dialect", "http"),
    ),
    *FILES[1:3],
    replace(FILES[3], command=lambda site: [*FILES[3].command(site), "--protocol", "HTTP/1.1"]),
)
HTTP_CONTROL = FILES_CONTROL


def _secure(site: Site) -> Sequence[str]:
    cert, key = configs.certificate(site.directory)
    address = f"tls:{site.port}:interface=127.0.0.1:cert={cert}:key={key}"
    return _netsvc("--files-http", address, "--files-root", "{root}")(site)


HTTPS = (
    Server(NETSVC, _secure, _client_hello()),
    replace(_nginx("nginx", tls=True), dialect=()),
    replace(_nginx("nginx, again", control="nginx", tls=True), dialect=()),
)


_NO_RATE = ("--chat-rate", "1000000", "--chat-burst", "1000000", "--chat-members", "2000")
_CROWD = ("--chat", "{address}", *_NO_RATE)

CHAT = (
    Server(NETSVC, _netsvc(*_CROWD), probe=b"", dialect=("--dialect", "line")),
    Server(
        "netsvc, SQLite",
        _netsvc(*_CROWD, "--chat-store", "sqlite:{directory}/chat.sqlite"),
        probe=b"",
        dialect=("--dialect", "line"),
    ),
    Server(
        "netsvc, IRC",
        _netsvc("--chat-irc", "{address}", *_NO_RATE),
        probe=_IRC,
        dialect=("--dialect", "irc"),
    ),
    Server(
        "netsvc, WebSocket",
        _netsvc("--chat-web", "{address}", *_NO_RATE),
        probe=_HTTP,
        dialect=("--dialect", "websocket"),
    ),
    Server(
        "ngircd",
        lambda site: [program("ngircd"), "-n", "-f", str(configs.ngircd(site.port, site.directory))],
        probe=_IRC,
        absent=_package("ngircd", "ngircd"),
        # More at a time than its queue holds would wait for seconds, and the whole crowd with them.
        dialect=("--dialect", "irc", "--entering", "10"),
    ),
    Server(
        "InspIRCd",
        lambda site: [
            *(program("inspircd"), "--nofork", "--runasroot"),
            *("--config", str(configs.inspircd(site.port, site.directory))),
        ],
        probe=_IRC,
        absent=_package("inspircd", "inspircd"),
        dialect=("--dialect", "irc"),
    ),
    Server(
        "twistd words",
        lambda site: [
            *(_TWISTD, "-n", "--pidfile=", f"--logfile={site.directory}/words.log"),
            *("--python", str(Path(__file__).parent / "peers" / "words.py")),
        ],
        probe=_IRC,
        dialect=("--dialect", "irc", "--password", "secret"),
        environment=lambda site: {"WORDS_PORT": str(site.port)},
    ),
)

_PY3TFTP = str(Path(sysconfig.get_path("scripts"), "py3tftp"))

TFTP = (
    Server(NETSVC, _netsvc("--files-tftp", "{address}", "--files-root", "{root}"), probe=_NO_SUCH_FILE, datagram=True),
    Server(
        "atftpd",
        lambda site: [
            *(program("atftpd"), "--daemon", "--no-fork", "--port", str(site.port), "--bind-address", "127.0.0.1"),
            *("--logfile", f"{site.directory}/atftpd.log", str(site.root)),
        ],
        probe=_NO_SUCH_FILE,
        datagram=True,
        absent=_package("atftpd", "atftpd"),
    ),
    Server(
        "py3tftp",
        # It serves the directory that it is started in.
        lambda site: [
            *("sh", "-c", 'cd "$0" && exec "$@"', str(site.root), _PY3TFTP),
            *("--host", "127.0.0.1", "--port", str(site.port)),
        ],
        probe=_NO_SUCH_FILE,
        datagram=True,
        absent=lambda: None if Path(_PY3TFTP).exists() else "py3tftp is not installed: pip install 'netsvc[bench]'",
    ),
)
