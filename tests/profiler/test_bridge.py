"""The profiler behind the bridge of this package: a WebSocket client sees a Python process."""

from __future__ import annotations

import os

from tests.conftest import Serve, ask, receive_data
from tornado_rbkit import Bridge, profiler
from tornado_rbkit.protocol import CPUSample, EventCollection, Handshake, ObjectSpaceDump, decode


async def test_a_websocket_client_profiles_a_python_process(server: profiler.Server, serve: Serve) -> None:
    mounted = await serve(Bridge(pub=server.pub, req=server.req))
    connection = await mounted.connected()
    assert await ask(connection, "start_allocation_tracing") == b"0ok"
    handshake = decode((await ask(connection, "handshake"))[1:])
    assert isinstance(handshake, Handshake)
    assert handshake.allocation_tracing_enabled
    assert await ask(connection, "stop_allocation_tracing") == b"0ok"
    assert handshake.pid == os.getpid()
    await ask(connection, "start_cpu_profiling")
    seen: set[type] = set()
    asked = False
    while not {CPUSample, ObjectSpaceDump} <= seen:  # vitals come as well
        message = decode(await receive_data(connection))
        assert isinstance(message, EventCollection)
        seen |= {type(event) for event in message.events}
        if not asked:
            asked = True
            await connection.write_message("objectspace_snapshot")
    server.call(lambda profile: profile.cpu.stop())
