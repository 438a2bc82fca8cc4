"""The options for the address and the port of a web server. Imports no web server."""

from __future__ import annotations

import argparse
import re
from typing import Final

DEFAULT_PORT: Final = 8765
DEFAULT_HOST: Final = "127.0.0.1"


def add_listen_options(parser: argparse.ArgumentParser, default_port: int) -> None:
    """Add the address and the port of a web server."""
    parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=default_port, help="port to listen on; 0 picks a free one (default: %(default)s)"
    )


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that serve the page of one process."""
    parser.add_argument("--open", action="store_true", help="open the page in a browser (default: print its URL only)")
    add_listen_options(parser, 0)


def _port(text: str) -> int:
    port = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is out of range; allowed: 0 to 65535")
    return port
