"""The command line: ``tornado-rbkit``, or ``python -m tornado_rbkit``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import inspect
import io
import json
import logging
import math
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, TextIO, TypeVar

from tornado.netutil import bind_sockets
from tornado.web import Application

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.cli.listener import BoundedServer, Listener
from tornado_rbkit.cli.output import replacing
from tornado_rbkit.cli.program import as_python_does, own_module, prepare
from tornado_rbkit.cli.progress import Progress
from tornado_rbkit.cli.stopping import stop_at_eof, stop_signals
from tornado_rbkit.client import RbkitClient
from tornado_rbkit.errors import RbkitError, RecordingError, ServerFailedError
from tornado_rbkit.log_throttle import LogThrottleFilter
from tornado_rbkit.profiler import list_servers
from tornado_rbkit.profiler.folder import DIRECTORY_VARIABLE, check_chosen_folder, runtime_folder
from tornado_rbkit.protocol import COMMANDS, CommandError, DecodeError, Event, Handshake, decode_handshake
from tornado_rbkit.recording.export import collapsed, json_lines, speedscope
from tornado_rbkit.recording.recording import REPLY, Record, Recorder, events, read
from tornado_rbkit.recording.replay import ReplayServer
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.web.access import AccessDeniedError, AccessHandler, check_token, is_loopback
from tornado_rbkit.web.discovered import DiscoveredTargets
from tornado_rbkit.web.routes import rbkit_routes

_log = logging.getLogger(__name__)

DEFAULT_PORT: Final = 8765
_SPARE_REQUESTS: Final = 128  # connections without a WebSocket, in addition to `max_clients` that connect
_MAX_TOKEN_FILE: Final = 4096  # bytes
_LOG_FORMAT: Final = "%(levelname)s %(message)s"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_T = TypeVar("_T")
_ENDING: Final = "; ending, once the profiler has replied (Ctrl-C: at once)"
_FORMATS: Final = {"speedscope": speedscope, "collapsed": collapsed, "json": json_lines}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 for success, 1 for a failure, 2 for wrong arguments."""
    options = _parser().parse_args(as_python_does(sys.argv[1:] if arguments is None else arguments))
    if options.run is not _run and isinstance(sys.stdout, io.TextIOWrapper):  # names may contain any characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = options.run(options)
        if inspect.iscoroutine(result):
            level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
            logging.basicConfig(level=level, format=_LOG_FORMAT)
            for handler in logging.getLogger().handlers:
                handler.addFilter(LogThrottleFilter())
            result = asyncio.run(result)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130  # as for a process that SIGINT ended
    except BrokenPipeError:  # the reader of the output has closed it
        _forget_output()
        return 1
    except (RbkitError, ValueError, OSError) as error:
        print(f"tornado-rbkit: {_reason(error)}", file=sys.stderr)
        if isinstance(error, RbkitError):
            return error.exit_status
        if isinstance(error, OSError) and error.errno in _FULL:
            _forget_output()
            return 1
        return 2
    if callable(result):  # runs a program, whose errors are not caught
        result = result()
    return result or 0


def _forget_output() -> None:
    """Discard the output that could not be written, because Python flushes it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return _line(f"{error.filename}: {error.strerror}")
    return _line(str(error))


def _line(text: object) -> str:
    """Return foreign text as one line of printable characters, cut off after 1000."""
    return "".join(character if character.isprintable() else " " for character in str(text)[:1000])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tornado-rbkit", description="A live rbkit profiler on a WebSocket.")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("-v", "--verbose", action="store_true", help="log connections and disconnections")
    level.add_argument("-q", "--quiet", action="store_true", help="log errors only")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a profiler to browsers and other WebSocket clients")
    serve.set_defaults(run=_serve)
    serve.add_argument(
        "--pub",
        metavar="URL",
        help="endpoint where rbkit publishes (default: with neither --pub nor --req the processes that `list` shows, "
        "and while there are none, or with --req, tcp://127.0.0.1:5555, port from RBKIT_PUB_PORT if set)",
    )
    serve.add_argument(
        "--req",
        metavar="URL",
        help="endpoint where rbkit takes commands (default: as for --pub, with port 5556 or RBKIT_REQ_PORT)",
    )
    serve.add_argument(
        "--idle-grace",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds to keep the profiler connected after the last client left (default: %(default)s)",
    )
    serve.add_argument(
        "--keep-profiling", action="store_true", help="do not stop profiling after the last client left"
    )
    serve.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)  # for the child process of run
    _add_server_options(serve)

    demo = commands.add_parser("demo", help="serve a Python workload under the embedded profiler")
    demo.set_defaults(run=_demo)
    _add_server_options(demo)

    run = commands.add_parser(
        "run",
        help="run a Python program under the embedded profiler, and serve it",
        usage="%(prog)s [-h] [--open] [--host HOST] [--port PORT] (SCRIPT | -m MODULE) [ARGUMENT ...]",
    )
    run.set_defaults(run=_run)
    run.add_argument("--open", action="store_true", help="open the page in a browser")
    run.add_argument(
        "--host", default="127.0.0.1", help="address that the web server listens on (default: %(default)s)"
    )
    run.add_argument(
        "--port", type=_port, default=0, help="port of the web server; 0 picks a free one (default: %(default)s)"
    )
    run.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="MODULE",
        help="module to run, with its arguments",
    )
    run.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="script to run, with its arguments")

    listing = commands.add_parser("list", help="list the Python processes of this user that have a profiler")
    listing.set_defaults(run=_list)

    send = commands.add_parser("send", help="send one command and print the reply")
    send.set_defaults(run=_send)
    send.add_argument("command", metavar="COMMAND", help="command to send, such as handshake or objectspace_snapshot")
    _add_client_options(send)

    record = commands.add_parser("record", help="record the messages of a profiler to a file, until Ctrl-C")
    record.set_defaults(run=_record)
    record.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write the recording to")
    record.add_argument("--memory", action="store_true", help="profile memory during the recording")
    record.add_argument("--cpu", action="store_true", help="profile CPU use during the recording")
    record.add_argument("--snapshot", action="store_true", help="take a heap snapshot at the beginning")
    record.add_argument("--seconds", type=_seconds, metavar="S", help="seconds to record (default: until Ctrl-C)")
    _add_client_options(record)

    replay = commands.add_parser("replay", help="serve a recording as if it were live")
    replay.set_defaults(run=_replay)
    replay.add_argument("file", metavar="FILE", help="recording written by the command record")
    replay.add_argument(
        "--speed",
        type=float,
        default=1.0,
        help="playback speed; 2 is twice as fast as recorded (default: %(default)s)",
    )
    _add_server_options(replay)

    export = commands.add_parser("export", help="convert a recording for other tools")
    export.set_defaults(run=_export)
    export.add_argument("file", metavar="FILE", help="recording written by the command record")
    export.add_argument(
        "--format", choices=sorted(_FORMATS), default="speedscope", help="output format (default: %(default)s)"
    )
    export.add_argument("-o", "--output", metavar="FILE", help="file to write (default: standard output)")
    return parser


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    allow_origin = "additional origin whose pages may connect, such as https://tools.example; '*' for all (repeatable)"
    allow_host = "additional Host header value to accept if no token is required; '*' for all (repeatable)"
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="port to listen on; 0 picks a free one (default: %(default)s)"
    )
    parser.add_argument("--prefix", default="/rbkit", help="path of the page and the WebSocket (default: %(default)s)")
    _add_token_options(
        parser, "token that clients must send; by default none on a loopback address, else generated and printed"
    )
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=allow_host)
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help=allow_origin)
    parser.add_argument("--read-only", action="store_true", help="refuse all commands except handshake")
    parser.add_argument("--any-command", action="store_true", help="also accept commands that are not in protocol 2.1")
    parser.add_argument(
        "--encoding",
        choices=["binary", "escaped"],
        default="binary",
        help="encoding for clients that do not choose one (default: %(default)s)",
    )
    parser.add_argument(
        "--max-clients",
        type=int,
        default=1024,
        metavar="N",
        help="maximum number of clients at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--compression-level",
        type=int,
        default=0,
        metavar="1-9",
        help="permessage-deflate level; 0 for no compression (default: %(default)s)",
    )


def _add_client_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default=f"ws://127.0.0.1:{DEFAULT_PORT}/rbkit/ws",
        help="WebSocket URL of the server (default: %(default)s)",
    )
    _add_token_options(parser, "token that the server requires")


def _add_token_options(parser: argparse.ArgumentParser, text: str) -> None:
    given = parser.add_mutually_exclusive_group()
    seen = "visible in the process list, unlike RBKIT_TOKEN and --token-file"
    given.add_argument("--token", help=f"{text} ({seen})")
    given.add_argument(
        "--token-file",
        metavar="FILE",
        help="file that contains the token (default: the environment variable RBKIT_TOKEN)",
    )


def _port(text: str) -> int:
    port = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is out of range; allowed: 0 to 65535")
    return port


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is out of range; allowed: 0 or more")
    return seconds


def _token(options: argparse.Namespace) -> str | None:
    """Return the token from --token or --token-file, else from the environment variable RBKIT_TOKEN, else None.

    A token in a client's --url takes precedence over RBKIT_TOKEN.

    Raises:
        ValueError: the token is empty, or cannot be sent.
        OSError: the file cannot be read.
    """
    if options.token is not None:
        return check_token(options.token, "--token")
    if options.token_file is not None:
        return check_token(_read_token(options.token_file), f"--token-file {options.token_file}")
    if re.search(r"[?&]token=", getattr(options, "url", "")):
        return None
    token = os.environ.get("RBKIT_TOKEN")
    return None if token is None else check_token(token, "RBKIT_TOKEN")


def _read_token(path: str) -> str:
    with open(path, "rb") as file:
        if os.name == "posix" and os.fstat(file.fileno()).st_mode & stat.S_IROTH:
            _log.warning("every user of this machine can read the token in %s; chmod o-r %s", path, path)
        content = file.read(_MAX_TOKEN_FILE + 1)
    if len(content) > _MAX_TOKEN_FILE:
        raise ValueError(f"--token-file {path} has more than {_MAX_TOKEN_FILE} bytes; allowed: one line, the token")
    return content.decode("utf-8-sig", "replace").strip()


async def _serve(options: argparse.Namespace) -> int:
    if options.pub is None and options.req is None:
        return await _serve_discovered(options)
    return await _serve_until_stopped(options, _bridge(options, options.pub, options.req))


async def _serve_discovered(options: argparse.Namespace) -> int:
    check_chosen_folder()
    targets = DiscoveredTargets(lambda pub, req, thread: _bridge(options, pub, req, threaded=thread))
    following = asyncio.create_task(targets.follow())
    await asyncio.sleep(0)  # for the first scan
    try:
        status = await _serve_until_stopped(options, targets, following)
        if following.done():
            following.result()  # raises the exception that ended it
        return status
    finally:
        following.cancel()
        await asyncio.wait([following])


async def _demo(options: argparse.Namespace) -> int:
    check_chosen_folder()
    process = await asyncio.create_subprocess_exec(
        *own_module("tornado_rbkit.profiler.demo"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must reach only the server, which ends the demo
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise ServerFailedError("the process of the demo did not start")
        endpoints = json.loads(line)
        ended = asyncio.create_task(process.wait())
        bridge = _bridge(options, endpoints["pub"], endpoints["req"])
        status = await _serve_until_stopped(options, bridge, ended)
        if ended.done():
            raise ServerFailedError(f"the process of the demo ended (exit status {ended.result()})")
        return status
    finally:
        process.stdin.close()
        await process.wait()


def _run(options: argparse.Namespace) -> Callable[[], object]:
    check_chosen_folder()
    return prepare(options.module, options.script, options.host, options.port, options.open)


def _list(options: argparse.Namespace) -> int:
    check_chosen_folder()
    servers = list_servers()
    if not servers:
        where = f"{runtime_folder()} ({DIRECTORY_VARIABLE}, else XDG_RUNTIME_DIR, else the folder for temporary files)"
        print(f"tornado-rbkit: there is no process with a profiler in {where}", file=sys.stderr)
    for server in servers:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(server.started))
        print(f"{_line(server.name)}\t{server.pid}\t{server.pub}\t{server.req}\t{started}")
    return 0


async def _replay(options: argparse.Namespace) -> int:
    options.idle_grace = 0.0  # so that the replay restarts for a client that connects after the last one left
    with open(options.file, "rb") as file:  # noqa: ASYNC230 - read on the replay's thread

        def records() -> Iterator[Record]:
            file.seek(0)
            return read(file)

        replay = ReplayServer(records, speed=options.speed)
        try:
            next(records(), None)
        except RecordingError as error:
            raise ValueError(f"{options.file}: {error}") from error
        with replay as server:
            ended = asyncio.wrap_future(server.ended)
            status = await _serve_until_stopped(options, _bridge(options, server.pub, server.req), ended)
            if ended.done():
                ended.exception()  # retrieved, because leaving the replay raises it
            return status


def _bridge(
    options: argparse.Namespace, pub: str | None, req: str | None, threaded: bool | IOLoopThread = True
) -> Bridge:
    return Bridge(
        pub,
        req,
        threaded=threaded,
        default_encoding=options.encoding,
        max_clients=options.max_clients,
        idle_grace=getattr(options, "idle_grace", 30.0),
        stop_when_idle=not getattr(options, "keep_profiling", True),
        compression_level=options.compression_level,
    )


class _NothingHandler(AccessHandler):
    """Answers 404 in plain text for unknown paths, and logs them without their query as the other handlers do."""

    def prepare(self) -> None:
        raise AccessDeniedError(
            404, "there is no page at this path, and no profiler of that name; targets beside the page lists them"
        )


async def _serve_until_stopped(
    options: argparse.Namespace, bridges: Bridge | Mapping[str, Bridge], ended: asyncio.Future[Any] | None = None
) -> int:
    """Serve until a signal arrives or `ended` is done."""
    if not options.host:
        raise ValueError("there is no address to listen on; allowed: 0.0.0.0 for all of them (--host)")
    token = _token(options)
    made_up = token is None and not is_loopback(options.host)
    if made_up:
        token = secrets.token_urlsafe(24)
    routes = rbkit_routes(
        bridges,
        prefix=options.prefix,
        read_only=options.read_only,
        token=token,
        allowed_hosts=options.allow_host,
        allowed_origins=options.allow_origin,
        commands="any" if options.any_command else COMMANDS,
    )
    try:
        sockets = bind_sockets(options.port, options.host)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {options.host} port {options.port}: {reason} (--host, --port)") from error
    if made_up:
        print(f"token {token}")
    application = Application(routes, default_handler_class=_NothingHandler)
    # At least `max_clients`, because all clients may connect at once and are not WebSockets until then.
    server = BoundedServer(application, max_requests=options.max_clients + _SPARE_REQUESTS)
    listener = Listener(sockets, server)
    stopped, _ = stop_signals()
    if ended is not None:
        ended.add_done_callback(lambda _: stopped.set())
    if getattr(options, "until_eof", False):
        stop_at_eof(stopped)
    host = f"[{options.host}]" if ":" in options.host else options.host
    path = f"/{options.prefix.strip('/')}/".replace("//", "/")
    print(f"ready http://{host}:{sockets[0].getsockname()[1]}{path}", flush=True)
    if token is None:
        _log.warning("every user of this machine can connect to this server; --token-file FILE demands a token")
    await stopped.wait()
    listener.close()
    await asyncio.gather(
        *(bridge.close() for bridge in ([bridges] if isinstance(bridges, Bridge) else bridges.values()))
    )
    await server.close_all_connections()
    return 0


async def _record(options: argparse.Namespace) -> int:
    _check_output(options.output)  # before any profiling is started
    try:
        return await _record_session(options)
    except OSError as error:
        if error.errno in _FULL:
            raise OSError(error.errno, error.strerror, options.output) from error
        raise


async def _record_session(options: argparse.Namespace) -> int:
    stop, stop_now = stop_signals()
    try:
        await _unless(stop_now, _record_until(stop, options))
    except _StoppedError:
        return 130  # as for a process that SIGINT ended
    return 0


async def _record_until(stop: asyncio.Event, options: argparse.Namespace) -> None:
    """Record until the event is set; raise _StoppedError if it is set before the recording has begun."""
    async with contextlib.AsyncExitStack() as stack:
        client = RbkitClient(options.url, token=_token(options))
        rbkit = await _unless(stop, stack.enter_async_context(client))
        reply = await _unless(stop, rbkit.request("handshake"))
        error = CommandError.from_reply(reply)
        if error is not None:
            raise error
        file = open(options.output, "wb")  # noqa: ASYNC230, SIM115 - a record is a few kilobytes; the stack closes it
        recorder = Recorder(file)
        summary = sys.stderr if _is_stdout(options.output) else sys.stdout
        stack.callback(lambda: print(recorder.progress(), file=summary))
        stack.enter_context(file)
        recorder.write(REPLY, "handshake", reply)
        await _record_session_of(stop, rbkit, recorder, _stops(options, reply), options)


async def _record_session_of(
    stop: asyncio.Event, rbkit: RbkitClient, recorder: Recorder, stops: list[str], options: argparse.Namespace
) -> None:
    starts = [command.replace("stop", "start") for command in stops]
    snapshot = ["objectspace_snapshot"] if options.snapshot else []
    stopping = asyncio.create_task(stop.wait())
    following = asyncio.create_task(recorder.follow(rbkit))
    recording = asyncio.create_task(recorder.ask_all(rbkit, [*starts, *snapshot]))
    tasks: list[asyncio.Task[Any]] = [stopping, following, recording]
    try:
        with Progress(lambda: recorder.progress() + (_ENDING if stop.is_set() else "")) as progress:
            await progress.until(recording, stopping, following)
            if recording.done():
                await progress.until(stopping, following, timeout=options.seconds)
            recording.cancel()
            ending = asyncio.create_task(recorder.ask_each(rbkit, reversed(stops)))
            tasks.append(ending)
            await progress.until(ending)
        await rbkit.close()
        results = await asyncio.gather(following, recording, return_exceptions=True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for result in (*results, *ending.result()):
        if isinstance(result, Exception):
            raise result


class _StoppedError(Exception):
    """A signal has stopped the work."""


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of the work, or cancel it and raise _StoppedError once the event is set."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _StoppedError
        return task.result()
    finally:
        stopping.cancel()
        while not task.done():  # closing a client waits for the server, unless it is cancelled again
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


def _check_output(path: str) -> None:
    """Raise OSError unless a file can be written at the path, without changing an existing one."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        return  # a pipe, a terminal
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise OSError(f"cannot write {path}: it is a folder, or in one that cannot be written to (--output)")


def _stops(options: argparse.Namespace, handshake: bytes) -> list[str]:
    """Return the commands that stop the requested profiling, except profiling that was already on."""
    try:
        on: Handshake | None = decode_handshake(handshake)
    except DecodeError:
        on = None
    memory = options.memory and not (on and on.object_trace_enabled)
    cpu = options.cpu and not (on and on.cpu_profiling_enabled)
    return [*(["stop_memory_profile"] if memory else []), *(["stop_cpu_profiling"] if cpu else [])]


def _export(options: argparse.Namespace) -> int:
    problems: list[str] = []
    exported = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(options.file, "rb"))
        output = stack.enter_context(_export_output(file, options.output))
        progress = stack.enter_context(Progress(lambda: f"{exported:,} events"))

        def whole() -> Iterator[Event]:
            nonlocal exported
            for event in events(read(file), problems):
                exported += 1
                progress.step()
                yield event

        for line in _FORMATS[options.format](whole(), options.file):
            if exported or not problems:
                print(line, file=output)
        if problems and not exported:  # the exception keeps an existing file unchanged
            raise RecordingError("; ".join(problems))
    if problems:
        raise RecordingError("; ".join(problems))
    return 0


@contextlib.contextmanager
def _export_output(recording: BinaryIO, path: str | None) -> Iterator[TextIO]:
    """Open the output of `export`: UTF-8 in any locale, and never the recording itself."""
    source = os.fstat(recording.fileno())
    stdout = _stat_of_stdout()
    if path is not None:
        _check_output(path)
    target = os.stat(path) if path is not None and os.path.exists(path) else None
    to_stdout = path is None or _is_stdout(path)
    overwritten = stdout if to_stdout else target
    if overwritten is not None and stat.S_ISREG(source.st_mode) and os.path.samestat(source, overwritten):
        raise ValueError(f"{path or 'standard output'} is the recording itself; name another file (--output)")
    if path is not None and not to_stdout:
        with replacing(path) as file:
            yield file
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout


def _is_stdout(path: str) -> bool:
    stdout = _stat_of_stdout()
    return stdout is not None and os.path.exists(path) and os.path.samestat(os.stat(path), stdout)


def _stat_of_stdout() -> os.stat_result | None:
    try:
        return os.fstat(sys.stdout.fileno())
    except (AttributeError, OSError):  # there is no standard output, or it is not a file
        return None


async def _send(options: argparse.Namespace) -> int:
    async with RbkitClient(options.url, token=_token(options)) as rbkit:
        asking = asyncio.create_task(rbkit.command(options.command))
        try:
            with Progress(lambda: f"waiting for the reply to {options.command}") as progress:
                await progress.until(asking)
            reply = asking.result()
        finally:
            asking.cancel()  # if Ctrl-C came first
    if isinstance(reply, Handshake):
        for name, value in reply._asdict().items():
            print(f"{name}: {_line(value)}")
    else:
        print(_line(reply))
    return 0
