"""Writes the example configuration file, of `netsvc init`: every key there is, each with its default or a sample.

What is only a comment is a key after `#` without a space, which may be taken away, or prose after `# `.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping

from netsvc.discovery import Catalogue
from netsvc.interfaces import INetworkService
from netsvc.limits import DEFAULTS, LIMITS
from netsvc.plan import DEFAULT_DRAIN
from netsvc.settings import Setting, declared_settings

__all__ = ["OWN_SERVICES", "example"]

#: The services in it, and the ports of their protocols. Others are written like these.
OWN_SERVICES: Mapping[str, Mapping[str, int]] = {
    "echo": {"tcp": 9001, "udp": 9001},
    "chat": {"line": 9002},
    "files": {"classic": 9003},
    "reply": {"tcp": 9004, "udp": 9004},
}
#: Those that are served as it stands; files needs a directory that only the reader knows.
_SERVED = ("echo", "chat")

#: For what has no default.
_LIMIT_SAMPLES: Mapping[str, object] = {
    "rate": 500,
    "burst": 1000,
    "pause": 10,
    "life": 86400,
    "read": "1M",
    "write": "1M",
    "readall": "10M",
    "writeall": "10M",
    "datagrams": 100,
    "allow": ["10.0.0.0/8", "2001:db8::/32"],
    "deny": ["192.0.2.0/24"],
    "hours": ["mon-fri 08:00-18:00"],
    "dryrun": ["hours", "deny"],
}
_OPTION_SAMPLES: Mapping[tuple[str, str], object] = {
    ("files", "root"): ".",
    ("reply", "text"): "hello",
}

_WIDTH = 120

_HEAD = """\
# What netsvc runs: `netsvc check --config netsvc.toml` shows it, or every mistake, and opens no port;
# `netsvc run --config netsvc.toml` runs it. Take the # away from a key to set it: what stands there is its
# default, or a sample where it has none. `netsvc schema` writes a JSON Schema for editors.
#
# ${NAME} in a text is a variable of the environment, ${NAME:-DEFAULT} has a default, and $$ is a dollar sign.
# Relative paths are those below the directory of this file.
"""
_ADMIN = """\
# The admin page, the metrics and the API. A bare port is on this machine only. Where others may come, they must know a
# word or have a certificate: [admin] has token = FILE as well, with that word in the file, or, where the address is
# "tls:9000:…", ca = FILE with the certificates (PEM) that sign theirs.
#[admin]
#address = "unix:admin.sock"
"""
_LIMITS = """\
# Limits, of the whole process here. Each may stand in a service as well, and in a listener; "none" lifts one.
"""
_SERVICE = """\
# An address is a port (0 takes a free one), "HOST:PORT", "[IPv6]:PORT", or an endpoint such as "unix:echo.sock" or
# "tls:9443:cert=cert.pem:key=key.pem". There may be a list of them, and limits for one of them:
# tcp = [9001, { address = "127.0.0.1:9011", limits = { perip = "none" } }]
"""
_NAMED = """\
# A service may run several times, under names of your choice.
#[services.lobby]
#service = "chat"
#line = 9012

# And so may a class straight from a file or module: serve = "./my.py:MyProtocol", listen = 9005.
"""
_TWISTD = """\
# Other twistd plugins, in the same process and under the same limits.
#[[twistd]]
#run = "web --listen tcp:8080 --path ."
#limits = { connections = 100 }
"""


def example(catalogue: Catalogue) -> str:
    """Write the file. Raises `PluginError` if one of our own services does not load."""
    parts = [_HEAD, "".join(_process()), _ADMIN, _LIMITS + "".join(_limits())]
    for name, ports in OWN_SERVICES.items():
        parts.append("".join(_service(catalogue.load(name), ports)))
    return "\n".join([*parts, _NAMED, _TWISTD])


def _process() -> Iterator[str]:
    yield "# Seconds that conversations have to end when the process stops.\n"
    yield f"drain = {DEFAULT_DRAIN:g}\n"
    yield '# How many processes serve, on the same ports; "auto": one for each core. Chat runs in one only.\n'
    yield "#workers = 1\n"
    yield '# How the log is written ("json": one object a line), and where a record of each connection goes:\n'
    yield '# "log", "off", or a file of its own.\n'
    yield '#log = "text"\n'
    yield '#access = "log"\n'
    yield "# A directory, made if it is missing, for what is to be kept. Below systemd it is that of the unit.\n"
    yield '#state = "state"\n'


def _limits() -> Iterator[str]:
    yield "[limits]\n"
    for limit in LIMITS.values():
        sample = DEFAULTS.get(limit.name, _LIMIT_SAMPLES.get(limit.name))
        yield from _entry(limit.name, sample, limit.description)


def _service(service: INetworkService, ports: Mapping[str, int]) -> Iterator[str]:
    served = service.name in _SERVED
    mark = "" if served else "#"
    yield f"# {service.description}.\n"
    if service.name == "echo":
        yield _SERVICE
    yield f"{mark}[services.{service.name}]\n"
    for protocol, port in ports.items():
        yield f"{mark}{protocol} = {port}\n"
    for setting in declared_settings(service.options):
        yield from _entry(setting.name, _sample(service.name, setting), setting.description)
    if service.name == "echo":
        yield "#limits = { perip = 20 }\n"
        yield "# Seconds that its own conversations have to end.\n"
        yield "#drain = 4\n"


def _sample(service: str, setting: Setting) -> object:
    if setting.flag:
        return False
    return _OPTION_SAMPLES.get((service, setting.name), setting.default)


def _entry(name: str, sample: object, description: str) -> Iterator[str]:
    description = " ".join(description.split())
    key = f"#{name} = {_toml(sample)}"
    line = f"{key:<30} # {description}"
    if len(line) <= _WIDTH:
        yield f"{line}\n"
    else:
        yield from (f"# {line}\n" for line in textwrap.wrap(description, _WIDTH - 2))
        yield f"{key}\n"


def _toml(value: object) -> str:
    """Write a value. What JSON and TOML write differently does not occur here."""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return json.dumps(value, ensure_ascii=False)
