"""The address of a NATS server and the credentials for it, checked before anything is opened."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import os
import re
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.fleet.subjects import check_fleet_name

_MAX_CREDENTIALS: Final = 64 * 1024  # bytes
_JWT: Final = re.compile(r"-----BEGIN NATS USER JWT-----\s+(\S+)\s")


class CredentialsError(RbkitError, ValueError):
    """The credentials, or the address of the NATS server, cannot be used; the message says why."""

    exit_status = 2


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The identity of a process at the NATS server.

    Attributes:
        name: the name of the host or the bridge, "" if the file has none.
        kind: ``host`` or ``bridge``, "" if the file does not say.
        seed: the seed of an nkey, "" for a JWT.
        file: the path of a file with a JWT (.creds), "" for an nkey.
        ca: the certificate of the server's authority as PEM, "" for the authorities that the system trusts.
        read_only: whether a bridge may send no commands except handshake.
    """

    name: str = ""
    kind: str = ""
    seed: str = field(default="", repr=False)
    file: str = ""
    ca: str = ""
    read_only: bool = False

    @classmethod
    def read(cls, path: str) -> Credentials:
        """Read a file that ``tornado-rbkit hub`` wrote, or a .creds file.

        Raises:
            CredentialsError: other users may read the file, or it is neither.
            OSError: the file cannot be read.
        """
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid"):
                if status.st_uid != os.getuid():
                    raise CredentialsError(f"{path} belongs to user {status.st_uid}; allowed: a file of your own")
                if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    mode = status.st_mode & 0o777
                    raise CredentialsError(f"{path} has the mode {mode:o}; allowed: 600, as it is a secret")
            text = file.read(_MAX_CREDENTIALS).decode("utf-8", "replace")
        jwt = _JWT.search(text)
        if jwt is not None:
            return cls(name=_name_in_jwt(jwt[1]), file=path)
        try:
            facts: Any = json.loads(text)
            name, seed, ca = (str(facts[key]) for key in ("name", "seed", "ca"))
            read_only = facts.get("read_only") is True
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CredentialsError(
                f"{path} has no credentials; allowed: a file of `tornado-rbkit hub`, or a .creds file (--creds)"
            ) from None
        check_fleet_name(name, "the name in the credentials")
        return cls(name=name, kind=str(facts.get("kind", "")), seed=seed, ca=ca, read_only=read_only)


def _name_in_jwt(jwt: str) -> str:
    """Return the name of the user in a JWT, "" if it cannot be read; the server checks the JWT."""
    try:
        body = jwt.split(".")[1]
        facts = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return str(facts.get("name", ""))
    except (ValueError, IndexError, AttributeError, binascii.Error):
        return ""


@dataclass(frozen=True, kw_only=True)
class NatsServers:
    """One or more servers of a NATS cluster, and the credentials for them.

    Attributes:
        urls: ``nats://HOST:PORT`` or ``tls://HOST:PORT``, perhaps with a user and a password.
        credentials: who this process is.
        ca: the path of a file with the certificate of the servers' authority, instead of the one in the credentials.
        insecure: whether a server that is not on this machine may be used without TLS and credentials.

    Raises:
        CredentialsError: an address is not valid, or would be used without TLS or credentials.
    """

    urls: tuple[str, ...]
    credentials: Credentials = Credentials()
    ca: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        for url in self.urls:
            if not _is_valid(url):
                allowed = "nats://HOST:PORT or tls://HOST:PORT, several separated by commas"
                raise CredentialsError(f"{_shown(url)} is not the URL of a NATS server; allowed: {allowed} (--nats)")
            parts = urlsplit(url)
            if self.insecure or _is_loopback(parts.hostname or ""):
                continue
            if parts.scheme != "tls":
                raise CredentialsError(
                    f"{_shown(url)} is on another machine, without TLS; allowed: tls://HOST:PORT (--nats, --insecure)"
                )
            if not (self.credentials.seed or self.credentials.file or parts.password):
                raise CredentialsError(
                    f"{_shown(url)} is on another machine and there are no credentials; "
                    "allowed: a file of `tornado-rbkit hub`, or a .creds file (--creds, --insecure)"
                )
        if self.ca:
            self.tls()

    def tls(self) -> ssl.SSLContext:
        """Return the settings of TLS: the server's certificate is always checked.

        Raises:
            CredentialsError: the authority's certificate cannot be read.
        """
        try:
            if self.ca:
                return ssl.create_default_context(cafile=self.ca)
            return ssl.create_default_context(cadata=self.credentials.ca or None)
        except (OSError, ssl.SSLError) as error:
            source = self.ca or "in the credentials"
            raise CredentialsError(f"the certificate {source} cannot be read: {error} (--ca)") from error


def servers_from(
    urls: str, kind: str, creds: str | None = None, ca: str | None = None, *, insecure: bool = False
) -> NatsServers:
    """Return the servers in an option: URLs separated by commas, and the paths of two files.

    Args:
        urls: the URLs.
        kind: ``host`` or ``bridge``, which the credentials must be for.
        creds: the path of a file with credentials.
        ca: the path of the certificate of the servers' authority.
        insecure: see `NatsServers`.

    Raises:
        CredentialsError: see `NatsServers` and `Credentials.read`.
        OSError: a file cannot be read.
    """
    credentials = Credentials.read(creds) if creds is not None else Credentials()
    if credentials.kind not in ("", kind):
        allowed = f"credentials of a {kind} (--creds)"
        raise CredentialsError(f"{creds} has the credentials of a {credentials.kind}; allowed: {allowed}")
    if ca is not None:
        Path(ca).read_bytes()  # for the system's own error
    given = tuple(url.strip() for url in urls.split(","))
    return NatsServers(urls=given, credentials=credentials, ca=ca or "", insecure=insecure)


def without_password(url: str) -> str:
    """Return a URL for logs."""
    return re.sub(r"//[^/@]*@", "//", url)


def _shown(url: str) -> str:
    return repr(without_password(url))


def _is_valid(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("nats", "tls")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
            and parts.path in ("", "/")
            and not parts.query
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
