"""The bridge's connection to a target of an agent."""

from __future__ import annotations

from unittest.mock import Mock

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.fleet.control import ControlConnection
from tornado_rbkit.fleet.transport import FleetEndpoint
from tornado_rbkit.upstream.options import UpstreamOptions


async def test_messages_that_an_agent_has_gathered_are_passed_on_without_gathering_them_again() -> None:
    options = UpstreamOptions(flush_interval=0.004)
    endpoint = FleetEndpoint(ControlConnection(lambda: None, "b1"), "web-1", "puma")
    transport = endpoint.transport(
        IOLoop.current(), Mock(), options, on_thread=False, context=zmq.Context[zmq.Socket[bytes]].instance
    )
    assert transport._subscriber.max_rest == options.flush_interval
