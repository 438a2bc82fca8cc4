"""The options that several commands share, and the conversion of options to tokens and settings."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import stat
from typing import Any, Final

from tornado_rbkit.bridge.settings import BridgeSettings
from tornado_rbkit.cli.address import DEFAULT_HOST, DEFAULT_PORT, add_listen_options
from tornado_rbkit.protocol import COMMANDS
from tornado_rbkit.web.access import Access, check_token
from tornado_rbkit.web.discovered import Endpoints

_log = logging.getLogger(__name__)

_MAX_TOKEN_FILE: Final = 4096  # bytes
_BRIDGE_SETTINGS: Final = {field.name for field in dataclasses.fields(BridgeSettings)} - {
    "pub",
    "req",
    "endpoint",
    "threaded",
}
_ACCESS_SETTINGS: Final = {field.name for field in dataclasses.fields(Access) if field.init} - {"token"}


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that serve. An option sets the setting that its `dest` names."""
    add_listen_options(parser, DEFAULT_PORT)
    parser.add_argument("--prefix", default="/rbkit", help="path of the page and the WebSocket (default: %(default)s)")
    _add_token_options(
        parser, "token that clients must send (default: none on a loopback address, else generated and printed)"
    )
    _add_access_options(parser)
    _add_bridge_options(parser)


def _add_access_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-host",
        dest="allowed_hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="additional Host header value to accept if no token is required; '*' for all (repeatable; default: "
        "loopback names and addresses only)",
    )
    parser.add_argument(
        "--allow-origin",
        dest="allowed_origins",
        action="append",
        default=[],
        metavar="URL",
        help="additional origin whose pages may connect, such as https://tools.example; '*' for all (repeatable; "
        "default: only the server's own)",
    )
    parser.add_argument(
        "--frame-ancestors",
        default=Access.frame_ancestors,
        metavar="SOURCES",
        help="sites that may show the page in a frame, as in the Content-Security-Policy directive frame-ancestors "
        "(default: %(default)s)",
    )
    add_command_rules(parser)


def _add_bridge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoding",
        dest="default_encoding",
        choices=["binary", "escaped"],
        default=BridgeSettings.default_encoding,
        help="encoding for clients that do not choose one (default: %(default)s)",
    )
    parser.add_argument(
        "--max-clients",
        type=int,
        default=BridgeSettings.max_clients,
        metavar="N",
        help="maximum number of clients at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--compression-level",
        type=int,
        default=BridgeSettings.compression_level,
        metavar="N",
        help="level of permessage-deflate, 1 to 9; 0 for no compression (default: %(default)s)",
    )


def add_profiler_options(parser: argparse.ArgumentParser, viewer: str, starter: str) -> None:
    """Add the options for the profilers that `serve` and `agent` serve.

    Args:
        viewer: who connects, for the help: a client or a bridge.
        starter: what starts profiling, for the help.
    """
    parser.add_argument(
        "--target",
        dest="targets",
        action="append",
        type=_named_target,
        default=[],
        metavar="NAME=PUB,REQ",
        help="profiler to serve by name, in addition to the processes that `list` shows (repeatable; default: none)",
    )
    parser.add_argument(
        "--idle-grace",
        type=float,
        default=BridgeSettings.idle_grace,
        metavar="SECONDS",
        help=f"seconds to keep a profiler connected after the last {viewer} left (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-profiling",
        dest="stop_when_idle",
        action="store_false",
        help=f"do not stop profiling after the last {viewer} left (default: stop what {starter})",
    )


def _named_target(text: str) -> tuple[str, Endpoints]:
    name, separator, endpoints = text.partition("=")
    pub, comma, req = endpoints.partition(",")
    if not (name and separator and pub and comma and req):
        allowed = "NAME=PUB,REQ, such as web-1=tcp://127.0.0.1:5555,tcp://127.0.0.1:5556"
        raise argparse.ArgumentTypeError(f"{text!r} is not a target; allowed: {allowed}")
    return name, Endpoints(pub, req)


def named_targets(options: argparse.Namespace) -> dict[str, Endpoints]:
    """Return the profilers that are given by name.

    Raises:
        ValueError: two have the same name.
    """
    targets = dict(options.targets)
    if len(targets) < len(options.targets):
        raise ValueError("two targets have the same name; allowed: a different name for each (--target)")
    return targets


def add_command_rules(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which commands are accepted."""
    parser.add_argument(
        "--read-only", action="store_true", help="refuse all commands except handshake (default: accept all)"
    )
    parser.add_argument(
        "--any-command",
        dest="commands",
        action="store_const",
        const="any",
        default=COMMANDS,
        help="also accept commands that are neither rbkit's nor the Python profiler's (default: refuse them)",
    )


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that connect to a server."""
    parser.add_argument(
        "--url",
        type=_websocket_url,
        default=f"ws://{DEFAULT_HOST}:{DEFAULT_PORT}/rbkit/ws",
        help="URL of the page, as the server prints it, or of its WebSocket (default: %(default)s)",
    )
    _add_token_options(parser, "token that the server requires (default: none)")


def _websocket_url(text: str) -> str:
    """Return the URL of the WebSocket beside a page; any other URL as it is, for RbkitClient to check."""
    match = re.fullmatch(r"http(s?)(://[^/?#]+(?:/[^?#]*)?)(\?[^#]*)?(#.*)?", text)
    if match is None:
        return text
    secure, page, query, _ = match.groups()
    return f"ws{secure}{page.rstrip('/')}/ws{query or ''}"


def _add_token_options(parser: argparse.ArgumentParser, text: str) -> None:
    given = parser.add_mutually_exclusive_group()
    seen = "visible in the process list, unlike RBKIT_TOKEN and --token-file"
    given.add_argument("--token", help=f"{text}; {seen}")
    given.add_argument(
        "--token-file",
        metavar="FILE",
        help="file that contains the token (default: the environment variable RBKIT_TOKEN)",
    )


def bridge_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Bridge` among the options, by name."""
    return {name: value for name, value in vars(options).items() if name in _BRIDGE_SETTINGS}


def access_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Access` among the options, by name, without the token."""
    return {name: value for name, value in vars(options).items() if name in _ACCESS_SETTINGS}


def token_of(options: argparse.Namespace) -> str | None:
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
