"""The options of the commands that connect to a NATS server."""

from __future__ import annotations

import argparse
import os
from typing import Final

from tornado_rbkit.fleet.nats import NatsServers, servers_from
from tornado_rbkit.fleet.server import AUTO, refuse_credentials

URL_VARIABLE: Final = "RBKIT_NATS_URL"


def add_nats_options(parser: argparse.ArgumentParser, kind: str, default: str) -> None:
    """Add the options for the address of a NATS server and the credentials of a host or a bridge."""
    parser.add_argument(
        "--nats",
        metavar="URL",
        help="NATS servers, such as tls://hub.example:4222, separated by commas, with TLS from the first byte "
        f"(handshake_first); {AUTO}: the server that `agent` runs on this machine ({default})",
    )
    parser.add_argument(
        "--creds",
        metavar="FILE",
        help=f"credentials of the {kind}: a file of `tornado-rbkit hub`, or a .creds file; its mode must be 600 "
        "(default: none)",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="certificate of the NATS servers' authority (default: the one in the credentials, else the system's)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="use a NATS server of another machine without TLS or credentials, for tests (default: refuse to)",
    )


def agent_servers(options: argparse.Namespace) -> NatsServers | None:
    """Return the NATS servers of an agent, None for the one of this machine.

    Raises:
        CredentialsError: they cannot be used.
        OSError: a file cannot be read.
    """
    url = options.nats if options.nats is not None else os.environ.get(URL_VARIABLE) or AUTO
    if url == AUTO:
        refuse_credentials(options.creds, options.ca)
        return None
    return servers_from(url, "host", options.creds, options.ca, insecure=options.insecure)
