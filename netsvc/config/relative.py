"""Makes relative paths of a file relative to its directory: a process may be started, and reloaded, anywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

__all__ = ["resolve_address", "resolve_networks", "resolve_path", "resolve_reference"]

#: Arguments of addresses that are paths, and those that are of a socket's.
_FILES = {"cert", "key", "directory", "privateKey", "certKey", "extraCertChain", "dhParameters"}
_SOCKETS = {"path", "address"}
_NETWORKS = {"allow", "deny"}
_SOCKET_SCHEMES = {"unix", "unixgram"}
#: Which of the words after a scheme are paths, where they need no name.
_PLACES = {"unix": {1}, "unixgram": {1}, "ssl": {2, 3}}
#: A part of an address and the colon that ends it, unless it is the last.
_PART = re.compile(r"((?:[^\\:]|\\.|\\$)*)(:|$)", re.S)


def resolve_path(path: str, directory: str) -> str:
    """Return a path as seen from a directory; an empty one stays so."""
    return os.path.join(directory, path.removeprefix("./")) if path else path


def resolve_reference(reference: str, directory: str) -> str:
    """Do so for a file in `PATH_OR_MODULE:NAME`; a module is found where Python finds it."""
    target, _, name = reference.rpartition(":")
    return f"{resolve_path(target, directory)}:{name}" if target.endswith(".py") or "/" in target else reference


def resolve_networks(value: object, directory: str) -> list[str]:
    """Do so for every `@FILE` in the value of a limit, a list or a word with commas. Returns a list."""
    items: Sequence[object] = value if isinstance(value, list) else str(value).split(",")
    words = [str(item).strip() for item in items]
    return [f"@{resolve_path(word[1:], directory)}" if word.startswith("@") else word for word in words]


def resolve_address(text: str, directory: str) -> str:
    r"""Do so for the files and sockets that an address names. A colon in a path is written `\:`."""
    parts = []
    scheme, place = "", 0
    for match in _PART.finditer(text):
        part = match[1]
        name, equals, value = part.partition("=")
        place += not equals
        if not equals and place in _PLACES.get(scheme, ()):
            part = _resolve_part(part, directory)
        elif part in _PLACES:
            scheme, place = part, 0
        elif equals and (name in _FILES or (name in _SOCKETS and scheme in _SOCKET_SCHEMES)):
            part = f"{name}={_resolve_part(value, directory)}"
        elif equals and name in _NETWORKS:
            networks = resolve_networks(re.sub(r"\\(.)", r"\1", value), directory)
            part = f"{name}={','.join(map(_escape, networks))}"
        parts.append(part + match[2])
    return "".join(parts)


def _resolve_part(value: str, directory: str) -> str:
    return _escape(resolve_path(re.sub(r"\\(.)", r"\1", value), directory)) if value else value


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(":", "\\:")
