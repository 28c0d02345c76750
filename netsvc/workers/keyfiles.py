"""Takes the key and certificate files of `ssl:` and `tls:` along to where they may not be read any more.

A worker starts when privileges are dropped, and again when the one before it died.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from twisted.internet.endpoints import _parse, quoteStringArgument

from netsvc.address import Address
from netsvc.listeners.certificates import CarriedTLS, CertificateError, find_places, read_file

__all__ = ["read_key_files", "with_key_files"]

#: The arguments of `ssl:` by their places (`twisted.internet.endpoints`), and those that name files.
_ARGUMENTS = ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters")
_FILES = ("privateKey", "certKey", "extraCertChain", "dhParameters")


def _named(address: Address) -> tuple[list[str], dict[str, str]] | None:
    """Split an `ssl:` endpoint, one behind `haproxy:` too, into what stands before its arguments, and these by name."""
    if address.kind != "stream" or address.scheme not in ("ssl", "haproxy"):
        return None
    positional, named = _parse(address.place)
    if "ssl" not in positional:
        return None
    start = positional.index("ssl") + 1
    arguments = dict(zip(_ARGUMENTS, positional[start:], strict=False)) | named
    return positional[:start], {"privateKey": "server.pem", **arguments}


def read_key_files(address: Address) -> dict[str, str]:
    """Return what the key and certificate files of an address hold.

    Those of `ssl:` by the argument that names them, those of `tls:` by their paths.
    """
    if address.tls is not None:
        # All or none; what cannot be read is told of when the address is opened.
        with suppress(CertificateError):
            paths = {path for place in find_places(address.tls) for path in place.files()}
            return {path: read_file(path).decode("latin-1") for path in sorted(paths)}
        return {}
    split = _named(address)
    contents: dict[str, str] = {}
    for name in _FILES if split else ():
        if split and name in split[1]:
            # One that cannot be read is told of when the address is opened.
            with suppress(OSError):
                contents[name] = Path(split[1][name]).read_text("latin-1")
    return contents


def with_key_files(address: Address, contents: Mapping[str, str]) -> Address:
    """Return the address with `contents`, which `read_key_files` returned.

    For `ssl:` there are files in memory in place of those that it names, for as long as the process lives. `tls:` goes
    on to look at its own.
    """
    if address.tls is not None and contents:
        carried = {path: content.encode("latin-1") for path, content in contents.items()}
        tls = address.tls
        return replace(address, tls=CarriedTLS(tls.cert, tls.key, tls.directory, carried))
    split = _named(address)
    if not split or not contents:
        return address
    before, arguments = split
    for name, content in contents.items():
        descriptor = os.memfd_create(f"netsvc {name}")
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content.encode("latin-1"))
        arguments[name] = f"/proc/self/fd/{descriptor}"
    words = [*before, *(f"{name}={quoteStringArgument(value)}" for name, value in arguments.items())]
    return replace(address, place=":".join(words))
