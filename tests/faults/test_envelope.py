"""A request without an envelope, which a REP socket signals but does not deliver: no server waits for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PROGRAM = """
    import zmq
    from tornado_rbkit import profiler
    from tornado_rbkit.recording.replay import ReplayServer

    def knock(endpoint):
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer, context.socket(zmq.REQ) as req:
            dealer.connect(endpoint)
            req.connect(endpoint)
            dealer.send(b"handshake")
            req.send(b"trigger_gc")
            assert req.recv() == b"ok"
            dealer.send(b"handshake")
            dealer.linger = -1

    server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    knock(server.req)
    server.call(lambda profile: None)
    profiler.stop_server()
    with ReplayServer(lambda: []) as replay:
        knock(replay.req)
    print("both have ended")
"""


def test_the_servers_continue_and_can_be_stopped() -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(PROGRAM)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.stdout == "both have ended\n", finished.stderr
