"""Reads the key and certificate files of `ssl:` and `tls:` for workers, which may not have the privileges to read them.

Workers start after privileges are dropped, and again when one has died.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from netsvc.listen.certificates import CertificateError, PreloadedTLS, find_certificates, read_file
from netsvc.plan.address import Address, join_endpoint, split_endpoint

#: The positional arguments of `ssl:` (`twisted.internet.endpoints`), and the arguments that name files.
_ARGUMENTS = ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters")
_FILES = ("privateKey", "certKey", "extraCertChain", "dhParameters")


def _named(address: Address) -> tuple[list[str], dict[str, str]] | None:
    """Split an `ssl:` endpoint, also behind `haproxy:`, into the prefix and its arguments by name."""
    if address.kind != "stream" or address.scheme not in ("ssl", "haproxy"):
        return None
    positional, named = split_endpoint(address.endpoint)
    if "ssl" not in positional:
        return None
    start = positional.index("ssl") + 1
    arguments = dict(zip(_ARGUMENTS, positional[start:], strict=False)) | named
    return positional[:start], {"privateKey": "server.pem", **arguments}


def read_key_files(address: Address) -> dict[str, str]:
    """Return the contents of the key and certificate files of an address.

    They are keyed by argument name for `ssl:`, and by path for `tls:`.
    """
    if address.tls is not None:
        # All or none; the error of an unreadable file is reported when the address is opened.
        with suppress(CertificateError):
            paths = {path for files in find_certificates(address.tls) for path in files.paths()}
            return {path: read_file(path).decode("latin-1") for path in sorted(paths)}
        return {}
    split = _named(address)
    contents: dict[str, str] = {}
    for name in _FILES if split else ():
        if split and name in split[1]:
            # The error of an unreadable file is reported when the address is opened.
            with suppress(CertificateError):
                contents[name] = read_file(split[1][name]).decode("latin-1")
    return contents


def with_key_files(address: Address, contents: Mapping[str, str]) -> Address:
    """Return the address with the file contents that `read_key_files` returned.

    `ssl:` gets files in memory instead of its named files, for the lifetime of the process. `tls:` continues to check
    its own files for changes.
    """
    if address.tls is not None and contents:
        carried = {path: content.encode("latin-1") for path, content in contents.items()}
        tls = address.tls
        return replace(address, tls=PreloadedTLS(tls.cert, tls.key, tls.directory, carried))
    split = _named(address)
    if not split or not contents:
        return address
    before, arguments = split
    for name, content in contents.items():
        descriptor = os.memfd_create(f"netsvc {name}")
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content.encode("latin-1"))
        arguments[name] = f"/proc/self/fd/{descriptor}"
    return replace(address, endpoint=join_endpoint(before, arguments))
