"""Writes the example configuration file of `netsvc init`: every key, each with its default or an example.

A `#` without a space comments out a key; a `#` with a space begins prose.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping

from netsvc.config.discovery import Catalogue
from netsvc.config.settings import SETTINGS
from netsvc.interfaces import INetworkService
from netsvc.options import Setting, declared_settings
from netsvc.plan.limits import LIMITS

#: The services in it, and the ports of their protocols.
OWN_SERVICES: Mapping[str, Mapping[str, int]] = {
    "echo": {"tcp": 9001, "udp": 9001},
    "chat": {"line": 9002, "irc": 6667, "web": 9005},
    "files": {"classic": 9003, "http": 8080, "tftp": 6969},
    "reply": {"tcp": 9004, "udp": 9004},
}
#: Those that are not commented out; files needs a directory.
_SERVED = ("echo", "chat")

#: Values for options without a default.
_OPTION_SAMPLES: Mapping[tuple[str, str], object] = {
    ("chat", "store"): "sqlite:chat.sqlite",
    ("chat", "reserved"): "boss, chief",
    ("chat", "operators"): "alice",
    ("chat", "irc-password"): "irc-password",
    ("chat", "irc-sts-port"): 6697,
    ("chat", "web-origins"): "https://chat.example",
    ("chat", "peer-members"): 50,
    ("chat", "peer-rooms"): 20,
    ("files", "root"): ".",
    ("files", "cache-control"): "public, max-age=3600",
    ("files", "cors"): "https://example.org",
    ("files", "token"): "token",
    ("files", "users"): "users",
    ("files", "tftp-ports"): "6970-6999",
    ("reply", "text"): "hello",
}

_WIDTH = 120

_HEAD = """\
# Configuration of netsvc. Check it with `netsvc check --config netsvc.toml`, which opens no port; run it with
# `netsvc run --config netsvc.toml`. To set a key, remove the # before it; the value shown is the default, or an
# example where there is no default. `netsvc schema` writes a JSON Schema for editors.
#
# ${NAME} in a text is an environment variable, ${NAME:-DEFAULT} one with a default, and $$ a dollar sign.
# Relative paths are relative to the directory of this file.
"""
_ADMIN = """\
# The admin page, metrics and API. A bare port listens on this machine only. An address that other machines can reach
# needs a token, token = FILE, or, where it is "tls:9000:…", a CA that signs the clients' certificates, ca = FILE.
#[admin]
#address = "unix:admin.sock"
"""
_LIMITS = """\
# Limits of the whole process. A service and a listener can have limits as well; "none" removes one.
"""
_SERVICE = """\
# An address is a port (0 picks a free one), "HOST:PORT", "[IPv6]:PORT", or an endpoint such as "unix:echo.sock" or
# "tls:9443:cert=cert.pem:key=key.pem". A list of addresses is possible, and limits for one of them:
# tcp = [9001, { address = "127.0.0.1:9011", limits = { perip = "none" } }]
"""
_NAMED = """\
# A service can run several times, under names of your choice.
#[services.lobby]
#service = "chat"
#line = 9012

# A class from a file or module is a service as well: serve = "./my.py:MyProtocol", listen = 9005.
"""
_TWISTD = """\
# Other twistd plugins, in the same process and with the same limits.
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
    for name, setting in SETTINGS.items():
        if not name.startswith("admin"):
            entry = "".join(_entry(name, name if setting.default is None else setting.default, setting.description))
            yield entry.replace("#drain =", "drain =", 1)


def _limits() -> Iterator[str]:
    yield "[limits]\n"
    for limit in LIMITS.values():
        sample = limit.sample if limit.default is None else limit.default
        yield from _entry(limit.name, sample, limit.description)


def _service(service: INetworkService, ports: Mapping[str, int]) -> Iterator[str]:
    served = service.name in _SERVED
    mark = "" if served else "#"
    yield f"# {service.description}.\n"
    if service.name == "echo":
        yield _SERVICE
    yield f"{mark}[services.{service.name}]\n"
    for protocol, port in ports.items():
        # IRC is for those who want it.
        yield f"{mark or '#' * (protocol in ('irc', 'web'))}{protocol} = {port}\n"
    for setting in declared_settings(service.options):
        yield from _entry(setting.name, _sample(service.name, setting), setting.description)
    if service.name == "echo":
        yield "#limits = { perip = 20 }\n"
        yield "# Grace period for its conversations, if different from the process's.\n"
        yield "#drain = 4\n"


def _sample(service: str, setting: Setting) -> object:
    if setting.flag:
        return False
    return _OPTION_SAMPLES.get((service, setting.name), setting.default)


def _entry(name: str, sample: object, description: str) -> Iterator[str]:
    key = f"#{name} = {_toml(sample)}"
    line = f"{key:<30} # {description}"
    if len(line) <= _WIDTH:
        yield f"{line}\n"
    else:
        yield from (f"# {line}\n" for line in textwrap.wrap(description, _WIDTH - 2))
        yield f"{key}\n"


def _toml(value: object) -> str:
    """Write a value. None here differs between JSON and TOML."""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return json.dumps(value, ensure_ascii=False)
