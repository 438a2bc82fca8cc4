"""The keys, credentials and configuration of a nats-server for a fleet. Needs the extra ``hub``."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.server import NatsServer, find_program, locked, write_private
from tornado_rbkit.profiler.folder import prepare_folder

LEAST_VERSION: Final = (2, 10, 3)
"""The oldest nats-server with ``handshake_first``: no data is sent before TLS."""

_YEARS: Final = timedelta(days=3650)
_LOCK_TIMEOUT: Final = 10.0  # seconds
_POLL: Final = 0.02  # seconds


class HubError(RbkitError, ValueError):
    """The hub cannot do what was requested; the message says why."""

    exit_status = 2


class Hub:
    """A folder with the certificate authority, the users and the configuration of one server.

    The server knows only public keys. Each user's file has its secret key (an nkey, Ed25519) and the authority's
    certificate; the folder keeps no copy of the key.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created with the mode 0700.

        Raises:
            HubError: the extra is not installed.
            RuntimeFolderError: others may write to the folder, or it cannot be made.
        """
        for module in ("cryptography", "nkeys"):
            if importlib.util.find_spec(module) is None:
                raise HubError(f"{module} is not installed; pip install 'tornado_rbkit[hub]'")
        self.folder = folder.absolute()
        prepare_folder(self.folder, "--dir")

    @property
    def config(self) -> Path:
        """The configuration of nats-server."""
        return self.folder / "nats.conf"

    def add(self, kind: str, name: str, path: Path, *, read_only: bool = False) -> None:
        """Add a host or a bridge, and write its credentials.

        Args:
            kind: ``host`` or ``bridge``.
            name: its name in the fleet; a bridge may run as several processes.
            path: the file with its credentials, which must not exist.
            read_only: whether a bridge may send no commands except handshake.

        Raises:
            HubError: the name is taken or not valid.
            OSError: the file exists, or cannot be written.
        """
        subjects.check_fleet_name(name, f"the name of the {kind}")
        with self._alone():
            self._add(kind, name, path, read_only=read_only)

    def _add(self, kind: str, name: str, path: Path, *, read_only: bool) -> None:
        import nkeys

        users = self._users()
        if name in users:
            raise HubError(f"the name {name!r} is taken; allowed: another name, or `hub remove {name}` first")
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        public = nkeys.from_seed(seed).public_key.decode()
        ca, _ = self._authority()
        facts = {"name": name, "kind": kind, "seed": seed.decode(), "read_only": read_only, "ca": ca.decode()}
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
        users[name] = {"kind": kind, "nkey": public, "read_only": read_only}
        self._write_users(users)

    def remove(self, name: str) -> None:
        """Remove a host or a bridge; the server cuts its connections when it reads its configuration again.

        Raises:
            HubError: there is none.
        """
        with self._alone():
            users = self._users()
            if users.pop(name, None) is None:
                known = ", ".join(sorted(users)) or "none"
                raise HubError(f"there is no host or bridge {name!r}; known: {known}")
            self._write_users(users)

    def configure(self, listen: str, names: Iterable[str]) -> None:
        """Write the server's certificate and its configuration.

        Args:
            listen: ``HOST:PORT``.
            names: the names and addresses by which the server is reached.
        """
        with self._alone():
            self._write_certificate([*names, "localhost", "127.0.0.1"])
            write_private(self.folder / "server.json", json.dumps({"listen": listen}))
            self._write_config()

    async def start(self) -> NatsServer:
        """Start the server.

        Raises:
            NatsServerError: there is no nats-server, it is too old, or it does not start.
        """
        server = await NatsServer.start(find_program(LEAST_VERSION), self.config, self.folder)
        write_private(self.folder / "server.pid", str(server.pid))
        return server

    def reload(self) -> bool:
        """Make the running server read its configuration; return whether there is one."""
        with self._alone():
            self._write_config()
        try:
            pid = int((self.folder / "server.pid").read_text())
            if sys.platform == "linux" and Path(f"/proc/{pid}/comm").read_text().strip() != "nats-server":
                return False  # an earlier server was killed, and another process has its pid
            os.kill(pid, signal.SIGHUP)
        except (OSError, ValueError, AttributeError):
            return False
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the folder: each change reads the users and writes them again.

        Raises:
            HubError: another process does so for too long.
        """
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            with locked(self.folder, "lock") as is_alone:
                if is_alone:
                    yield
                    return
            if time.monotonic() > deadline:
                raise HubError(f"{self.folder} is in use by another process for more than {_LOCK_TIMEOUT:g} s")
            time.sleep(_POLL)

    def _users(self) -> dict[str, dict[str, Any]]:
        path = self.folder / "users.json"
        if not path.exists():
            return {}
        users: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return users

    def _write_users(self, users: dict[str, dict[str, Any]]) -> None:
        write_private(self.folder / "users.json", json.dumps(users, indent=1))

    def _write_config(self) -> None:
        try:
            listen = json.loads((self.folder / "server.json").read_text(encoding="utf-8"))["listen"]
        except FileNotFoundError:
            return  # it is written when the server is started
        users = [
            {
                "nkey": user["nkey"],
                "permissions": subjects.permissions_of_host(name)
                if user["kind"] == "host"
                else subjects.permissions_of_bridge(name, read_only=user["read_only"]),
            }
            for name, user in self._users().items()
        ]
        tls = {
            "cert_file": str(self.folder / "server.pem"),
            "key_file": str(self.folder / "server.key"),
            "handshake_first": True,
            "min_version": "1.2",
        }
        lines = {
            "listen": listen,
            "ports_file_dir": str(self.folder),
            "tls": tls,
            "authorization": {"users": users},
        }
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
        write_private(self.config, text)

    def _authority(self) -> tuple[bytes, Any]:
        """Return the certificate, as PEM, and the key of the authority; create them if there are none."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        certificate, key_file = self.folder / "ca.pem", self.folder / "ca.key"
        if certificate.exists() and key_file.exists():
            return certificate.read_bytes(), serialization.load_pem_private_key(key_file.read_bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("tornado-rbkit hub")
        made = (
            _certificate(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_key_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_private(key_file, _pem(key))
        write_private(certificate, made.public_bytes(serialization.Encoding.PEM).decode())
        return certificate.read_bytes(), key

    def _write_certificate(self, names: Iterable[str]) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        ca_pem, ca_key = self._authority()
        ca = x509.load_pem_x509_certificate(ca_pem)
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        made = (
            _certificate(_name("nats-server"), ca.subject, key.public_key())
            .add_extension(alternatives, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(issuer, critical=False)
            .add_extension(_key_usage(signs=False), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        write_private(self.folder / "server.key", _pem(key))
        write_private(self.folder / "server.pem", made.public_bytes(serialization.Encoding.PEM).decode())


def _name(text: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(subject: Any, issuer: Any, key: Any) -> Any:
    from cryptography import x509

    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    serial = builder.serial_number(x509.random_serial_number())
    return serial.not_valid_before(now - timedelta(days=1)).not_valid_after(now + _YEARS)


def _key_usage(*, signs: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    private: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode()
