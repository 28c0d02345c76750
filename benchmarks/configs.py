"""Configurations of the servers that want a file: what their packages ship, with limits that let the load through."""

from __future__ import annotations

import datetime
from pathlib import Path

__all__ = ["certificate", "inspircd", "nginx", "ngircd"]


def certificate(directory: Path) -> tuple[Path, Path]:
    """Write a certificate for TLS and its key, unless they exist, and return their paths."""
    paths = directory / "cert.pem", directory / "key.pem"
    if not paths[0].exists():
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=7))
            .sign(key, hashes.SHA256())
        )
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        paths[0].write_bytes(made.public_bytes(encoding))
    return paths


def nginx(port: int, directory: Path, root: Path, *, tls: bool = False) -> Path:
    """Write nginx's: one worker, sendfile, an access log to a file; connections are kept if the client keeps them."""
    path = directory / "nginx.conf"
    secure = ""
    if tls:
        cert, key = certificate(directory)
        secure = f"ssl_certificate {cert}; ssl_certificate_key {key};"
    temporary = "".join(
        f"    {name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path.write_text(
        f"""\
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 10000; }}
http {{
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    access_log {directory}/access.log;
{temporary}    server {{
        listen 127.0.0.1:{port}{" ssl" if tls else ""};
        {secure}
        root {root};
    }}
}}
"""
    )
    return path


def ngircd(port: int, directory: Path) -> Path:
    """Write ngircd's: no look-ups, no penalties, no limit of connections."""
    path = directory / "ngircd.conf"
    path.write_text(
        f"""\
[Global]
Name = irc.example.net
Info = benchmark
AdminInfo1 = nobody
Listen = 127.0.0.1
Ports = {port}
PidFile = {directory}/ngircd.pid
ServerGID = nogroup
ServerUID = nobody
[Limits]
MaxConnections = 0
MaxConnectionsIP = 0
MaxJoins = 0
MaxNickLength = 20
MaxPenaltyTime = 0
PingTimeout = 120
PongTimeout = 20
[Options]
DNS = no
Ident = no
PAM = no
Morepings = no
SyslogFacility = local1
"""
    )
    return path


def inspircd(port: int, directory: Path) -> Path:
    """Write InspIRCd's: no look-ups, no flood control, room for a thousand members behind one address."""
    path = directory / "inspircd.conf"
    path.write_text(
        f"""\
<server name="irc.example.net" description="benchmark" network="Benchmark">
<admin name="nobody" nick="nobody" email="nobody@example.net">
<bind address="127.0.0.1" port="{port}" type="clients">
<connect name="all" allow="*" timeout="60" pingfreq="120" hardsendq="1048576" softsendq="1048576" recvq="65536"
  threshold="1000000000" commandrate="1000000000" fakelag="no" localmax="20000" globalmax="20000"
  maxconnwarn="no" resolvehostnames="no" useident="no" maxchans="20">
<performance somaxconn="1024" softlimit="20000" clonesonconnect="no" nouserdns="yes">
<channels users="20" opers="60">
<path configdir="{directory}" datadir="{directory}" logdir="{directory}" runtimedir="{directory}">
<pid file="{directory}/inspircd.pid">
<log method="file" type="* -USERINPUT -USEROUTPUT" level="default" target="{directory}/inspircd.log">
<options prefixquit="Quit: " syntaxhints="no" announcets="no">
<security maxtargets="20" runasuser="nobody" runasgroup="nogroup">
"""
    )
    return path
