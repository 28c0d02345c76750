"""Finds and reads certificates and their private keys in PEM form."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from netsvc.base import files
from netsvc.base.text import escape
from netsvc.plan.address import TLS

#: The most certificates of a directory.
MOST_CERTIFICATES = 1000
#: The largest file in bytes; a chain with the longest keys has a tenth of this.
LONGEST_FILE = 1024 * 1024
#: The longest chain in DER form, in bytes: Twisted sends at most 32 KiB of the server's first handshake messages. This
#: leaves 4 KiB for the signature and the other messages. Common chains have a tenth of this.
LONGEST_CHAIN = 28 * 1024
#: The most characters of a path in a message; the system accepts no longer path.
LONGEST_PATH = 4096
#: The files that Let's Encrypt clients write into a directory for each name.
_CHAIN, _KEY = "fullchain.pem", "privkey.pem"
_PRIVATE_KEY = re.compile(rb"-----BEGIN ((?:[A-Z]+ )*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


class CertificateError(ValueError):
    """A certificate cannot be used. The text is one line with the file and the reason."""


def escape_path(path: str) -> str:
    """Return a path with unprintable characters escaped: file names may be chosen by other users."""
    return escape(path, LONGEST_PATH)


@dataclass(frozen=True)
class PreloadedTLS(TLS):
    """A `tls:` address with the contents of its files by path, read while the process could still read them."""

    contents: Mapping[str, bytes] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class CertificateFiles:
    """The certificate file and the key file, which may be the same; `name` is the sort key in a directory."""

    name: str
    cert: str
    key: str

    def paths(self) -> tuple[str, ...]:
        """List the distinct files."""
        return tuple(dict.fromkeys((self.cert, self.key)))


@dataclass(frozen=True)
class CertificateAndKey:
    """A certificate with its chain and its private key."""

    chain: tuple[x509.Certificate, ...]
    key: Any

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The host names of the subjectAltName in lower case (RFC 6125, section 6.4.4)."""
        try:
            extension = self.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (x509.ExtensionNotFound, ValueError):
            return ()
        return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))

    @property
    def begins(self) -> datetime.datetime:
        """The start of the validity period."""
        return self.chain[0].not_valid_before_utc

    @property
    def expires(self) -> datetime.datetime:
        """The end of the validity period."""
        return self.chain[0].not_valid_after_utc


def find_certificates(tls: TLS, known: Iterable[str] = ()) -> list[CertificateFiles]:
    """List the certificates of a `tls:` address, sorted by name.

    In a directory, these are every NAME.pem and NAME.crt, with the key in NAME.key if that exists, else in the same
    file; and every NAME/fullchain.pem with NAME/privkey.pem. If `known` is given, it is used as the list of files
    instead of reading the directory. Raises `CertificateError`.
    """
    if tls.directory is None:
        cert, key = os.path.abspath(tls.cert or ""), os.path.abspath(tls.key or tls.cert or "")
        return [CertificateFiles(os.path.basename(cert), cert, key)]
    directory = os.path.abspath(tls.directory)
    found = set(known) or set(_files_in(directory))
    entries: dict[str, CertificateFiles] = {}
    for path in sorted(found):
        parent, file = os.path.split(path)
        name, suffix = os.path.splitext(file)
        if parent != directory:
            if file == _CHAIN:
                entry = CertificateFiles(os.path.basename(parent), path, os.path.join(parent, _KEY))
                entries.setdefault(entry.name, entry)
        elif suffix in (".pem", ".crt"):
            key = os.path.join(directory, f"{name}.key")
            entries.setdefault(name, CertificateFiles(name, path, key if key in found else path))
    if not entries:
        raise CertificateError(
            f"{escape_path(directory)}: no certificate found; expected NAME.pem, NAME.crt or NAME/{_CHAIN}"
        )
    if len(entries) > MOST_CERTIFICATES:
        raise CertificateError(
            f"{escape_path(directory)}: more than {MOST_CERTIFICATES} certificates; serve them at several ports"
        )
    return [entries[name] for name in sorted(entries)]


def _files_in(directory: str) -> Iterable[str]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith((".pem", ".crt", ".key")):
                    yield entry.path
                elif entry.is_dir() and os.path.exists(os.path.join(entry.path, _CHAIN)):
                    yield os.path.join(entry.path, _CHAIN)
    except OSError as error:
        raise CertificateError(f"{escape_path(directory)}: {error.strerror}") from None


def read_file(path: str) -> bytes:
    """Read a whole file. Raises `CertificateError`."""
    try:
        return files.read_file(path, LONGEST_FILE)
    except OSError as error:
        raise CertificateError(f"{escape_path(path)}: {error.strerror}") from None


def read_certificate(entry: CertificateFiles, contents: Mapping[str, bytes] | None = None) -> CertificateAndKey:
    """Read a certificate and its key, from files or `contents`. Raises `CertificateError`."""
    cert, key = ((contents[path] if contents else read_file(path)) for path in (entry.cert, entry.key))
    if b"-----BEGIN CERTIFICATE-----" not in cert:
        raise CertificateError(f"{escape_path(entry.cert)}: no certificate in PEM form")
    try:
        chain = tuple(x509.load_pem_x509_certificates(cert))
        public = chain[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{escape_path(entry.cert)}: the certificate is broken") from None
    size = sum(len(certificate.public_bytes(Encoding.DER)) for certificate in chain)
    if size > LONGEST_CHAIN:
        raise CertificateError(
            f"{escape_path(entry.cert)}: the chain of {len(chain)} certificates has {size} bytes, more than "
            f"{LONGEST_CHAIN}; keep only the first certificate and those that sign it"
        )
    private = _private_key(entry.key, key)
    if _spki(private.public_key()) != _spki(public):
        raise CertificateError(
            f"{escape_path(entry.cert)}: the key in {escape_path(Path(entry.key).name)} does not match the first "
            "certificate"
        )
    return CertificateAndKey(chain, private)


def _private_key(path: str, data: bytes) -> Any:
    found = _PRIVATE_KEY.search(data)
    if found is None:
        raise CertificateError(f"{escape_path(path)}: no private key in PEM form")
    try:
        return load_pem_private_key(found[0] + b"\n", None)
    except TypeError:
        raise CertificateError(
            f"{escape_path(path)}: the key is encrypted; a server cannot enter the passphrase, "
            "so decrypt it with openssl pkey"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{escape_path(path)}: the private key is broken") from None


def _spki(public: Any) -> bytes:
    encoded: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
