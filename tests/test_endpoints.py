from __future__ import annotations

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tornado_rbkit.endpoints import check_endpoint
from tornado_rbkit.errors import EndpointError

LONGEST_LABEL = "a" * 63
LONGEST_NAME = ".".join([LONGEST_LABEL] * 3 + ["a" * 61])


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "a", "a.b", "a.b.", "web-1", "web_1", "10.0.0.1", "0.0.0.0", "x1.2y", "xn--bcher-kva.example"),
        *("[::1]", "[::]", "[2001:db8::1]", "[::ffff:10.0.0.1]", "[fe80::1%eth0]", "[fe80::1%eth0.1]", "[fe80::1%2]"),
        *(LONGEST_LABEL, LONGEST_NAME),
    ],
)
def test_hosts_that_can_be_connected_to(host: str) -> None:
    assert check_endpoint(f"tcp://{host}:5555", "pub") == f"tcp://{host}:5555"


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "-a",
            "a-",
            "_a",
            "a_",
            "a.-b",
            "*",
            "a b",
            "a/b",
            "a;b",
            "a\n",
            "\u0661",
        ),
        *(LONGEST_LABEL + "a", LONGEST_NAME + "a", "1.2.3", "999.1.1.1", "1.2.3.4.5", "1.2.3.4.", "127", "01.2.3.4"),
        *("::1", "[]", "[::1", "::1]", "[:::1]", "[zz::1]", "[1.2.3.4]", "[::1%lo]", "[fe80::1%]", "[::1]]", "[[::1]"),
    ],
)
def test_hosts_that_cannot_be_connected_to(host: str) -> None:
    with pytest.raises(EndpointError, match="is not an endpoint; allowed: tcp://HOST:PORT or ipc://PATH"):
        check_endpoint(f"tcp://{host}:5555", "pub")


@given(st.text("ab1.-_:[]%", max_size=30))
def test_what_is_accepted_can_be_given_to_libzmq(host: str) -> None:
    endpoint = f"tcp://{host}:5555"
    try:
        check_endpoint(endpoint, "pub")
    except EndpointError:
        return
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.IPV6, 1)
        socket.connect(endpoint)
