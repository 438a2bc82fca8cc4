"""A real kernel, profiled from its notebook and watched through its server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ask, closing, receive, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tests.jupyter.conftest import Jupyter, Kernel, StartJupyter
from tests.jupyter.lab import SEEN
from tests.patient import PATIENCE
from tornado_rbkit.protocol import EventCollection, Handshake, decode

BUSY = """%%rbkit
import threading
def busy():
    for number in range(10**5):
        str(number)
    return "done"
def work(label):
    while not seen(label):
        busy()
def beside():
    work("__main__.beside")
def before():
    work("__main__.before")
thread = threading.Thread(target=beside)
thread.start()
before()
thread.join()
busy()
"""

WORK = """
def work():
    return [str(number) for number in range(10**5)]
while not seen("__main__.work"):
    work()
""".strip()

AWAITS = """%%rbkit
async def busy():
    while not seen("__main__.busy"):
        await asyncio.sleep(0.001)
        for number in range(10**5):
            str(number)
await asyncio.gather(busy(), busy())
asyncio.get_running_loop() is loop
"""


@pytest.fixture
def not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a process of the same name in the place of one that has gone."""
    monkeypatch.setattr("tornado_rbkit.web.discovered.KEEP_SECONDS", 0.0)


async def targets(server: Jupyter) -> list[str]:
    return [target["name"] for target in json.loads((await server.get("rbkit/targets")).body)]


async def figures(server: Jupyter, kernel: Kernel) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await server.get(f"rbkit/kernels/{kernel.id}")).body)
    return found


async def start(kernel: Kernel) -> dict[str, Any]:
    assert await kernel.run("%load_ext tornado_rbkit") == []
    return await start_again(kernel)


async def start_again(kernel: Kernel) -> dict[str, Any]:
    [output] = [output for output in await kernel.run("%rbkit start") if "data" in output]
    data: dict[str, Any] = output["data"]
    return data


async def test_it_is_found_by_its_notebook_s_name_and_watched(jupyter: StartJupyter, not_kept: None) -> None:
    server = await jupyter()
    async with server.kernel("work/My Analysis.ipynb") as kernel:
        before = await figures(server, kernel)
        assert (before["target"], before["records_memory"], before["pid"]) == (None, None, kernel.pid)
        assert before["memory_bytes"] > 10_000_000
        shown = await start(kernel)
        name = f"My-Analysis-{kernel.id[:8]}"
        link = f'href="{server.app.base_url}rbkit/?target={name}"'
        assert link in shown["text/html"]
        assert "127.0.0.1" not in shown["text/html"], "the link holds behind a proxy too"
        assert name in shown["text/plain"]
        await until(lambda: name in server.extension.bridges, "the kernel is found")
        assert await targets(server) == [name]
        connection = await server.connect(f"rbkit/{name}/ws")
        handshake = decode((await ask(connection, "handshake"))[1:])
        assert isinstance(handshake, Handshake)
        assert (handshake.pid, handshake.process_name) == (kernel.pid, f"My Analysis-{kernel.id[:8]}")
        assert await ask(connection, "start_cpu_profiling") == b"0ok"
        assert isinstance(decode(await receive_data(connection)), EventCollection)
        now = await figures(server, kernel)
        assert (now["target"], now["records_memory"], now["records_cpu"]) == (name, False, True)
        assert now["cpu_seconds"] >= before["cpu_seconds"]
        status = await kernel.text("%rbkit status")
        assert "CPU sampling: on" in status
        if os.name != "nt":
            assert re.search(r"pub ipc://\S+, req ipc://\S+", status), "nobody but its user can connect"
        assert " objects, sent to the connected viewers" in await kernel.text("%rbkit snapshot")
        [again] = await kernel.run("%rbkit start")
        assert again["data"] == shown, "a second start shows where the first one is"
        end = asyncio.create_task(closing(connection))  # a server awaits for 5 s that its close frame is read
        assert await kernel.run("%rbkit stop") == []
        assert await end == (1001, "server shutting down")
        assert "no profiler runs" in await kernel.text("%rbkit status")


async def test_a_port_that_is_taken_is_reported_in_a_line(
    jupyter: StartJupyter, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBKIT_REQ_PORT", rbkit.req.rpartition(":")[2])
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run("%load_ext tornado_rbkit")
        outputs = await kernel.run("%rbkit start")
        assert "RBKIT_REQ_PORT: in use by another program" in "".join(output.get("text", "") for output in outputs)
        assert "text/html" in outputs[-1]["data"], "the profiler listens elsewhere"


async def test_it_has_that_name_without_the_magic_too(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run("from tornado_rbkit import profiler")
        await kernel.run("profiler.start_server('tcp://127.0.0.1:*', 'tcp://127.0.0.1:*')")
        await until(lambda: f"Analysis-{kernel.id[:8]}" in server.extension.bridges, "the kernel is found")


async def test_it_is_forgotten_when_it_is_killed(jupyter: StartJupyter, not_kept: None) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await start(kernel)
        name = f"Analysis-{kernel.id[:8]}"
        await until(lambda: name in server.extension.bridges, "the kernel is found")
        connection = await server.connect(f"rbkit/{name}/ws")
        assert await ask(connection, "start_memory_profile") == b"0ok"
        await receive_data(connection)
        kernel.manager.stop_restarter()
        os.kill(kernel.pid, signal.SIGKILL)
        assert (await closing(connection))[0] == 1001
        await until(lambda: name not in server.extension.bridges, "the kernel is forgotten")
        assert await server.knock(f"rbkit/{name}/ws") == 404


async def test_it_is_found_again_by_its_viewers_when_it_restarts(
    jupyter: StartJupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.web.discovered.KEEP_SECONDS", PATIENCE)  # a busy machine starts kernels slowly
    server = await jupyter()
    async with server.kernel() as kernel:
        await start(kernel)
        name = f"Analysis-{kernel.id[:8]}"
        await until(lambda: name in server.extension.bridges, "the kernel is found")
        connection = await server.connect(f"rbkit/{name}/ws")
        await ask(connection, "handshake")
        kernel.close()
        await kernel.manager.restart_kernel()
        again = Kernel(kernel.manager)
        await again.open()
        try:
            await start(again)
            while await receive(connection) != b"0server:restarted":
                pass
            handshake = decode((await ask(connection, "handshake"))[1:])
            assert isinstance(handshake, Handshake)
            assert handshake.pid == again.pid
        finally:
            again.close()


async def test_a_cell_s_flame_graph_is_a_picture(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run(f"%load_ext tornado_rbkit\n{SEEN}")
        *_, result, picture = await kernel.run(BUSY)
        assert "done" in str(result)
        svg = picture["data"]["image/svg+xml"]
        bars = {
            str(title.text).partition(":")[0] for title in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")
        }
        assert {"all", "__main__.<module>", "__main__.before", "__main__.busy"} <= bars
        assert "__main__.beside" in bars, "threads that the cell started are in it"
        assert not any("run_cell" in bar or "run_code" in bar for bar in bars), "what ran the cell is not in it"
        assert "<script" not in svg
        assert "__main__.busy" in picture["data"]["text/plain"]


async def test_a_cell_that_fails_has_its_own_error_and_a_flame_graph(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run("%load_ext tornado_rbkit")
        outputs = await kernel.run("%%rbkit\n\ndef f(secret):\n    return 1 / 0\nf(42)")
        [error] = [output for output in outputs if output["kind"] == "error"]
        assert (error["ename"], error["evalue"]) == ("ZeroDivisionError", "division by zero")
        shown = "\n".join(error["traceback"])
        assert "magics.py" not in shown
        assert "run_cell" not in shown
        assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
        last = (
            "import sys, traceback\nprint(sys.last_type.__name__, *traceback.extract_tb(sys.last_traceback)[-1][1:3])"
        )
        assert await kernel.text(last) == "ZeroDivisionError 4 f\n", (
            "%debug opens the user's frame, at the cell's line"
        )


async def test_a_profiled_cell_runs_as_any_cell_does(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run(f"%load_ext tornado_rbkit\n{SEEN}\nimport asyncio\nloop = asyncio.get_running_loop()")
        kinds = [output["kind"] for output in await kernel.run("%%rbkit\n1 + 1;")]
        assert kinds == ["display_data"], "a trailing semicolon keeps the result quiet"
        outputs = await kernel.run(AWAITS)
        assert [output["data"]["text/plain"] for output in outputs if output["kind"] == "execute_result"] == ["True"]
        picture = outputs[-1]["data"]["text/plain"]
        assert "__main__.busy" in picture, "what a cell awaits is sampled"
        assert "IPython" not in picture
        assert "result" in await kernel.text("%%rbkit\n%%capture captured\nprint('result')\n") + await kernel.text(
            "print(captured.stdout)"
        ), "another magic's cell is profiled, too"
        [error] = [output for output in await kernel.run("%%rbkit\nif\n") if output["kind"] == "error"]
        assert error["ename"] == "SyntaxError"
        assert await kernel.text("%%rbkit\nget_ipython().run_cell('print(1)')\nprint(2)") == "1\n2\n"
        assert [output["kind"] for output in await kernel.run("3;")] == [], "the profile has ended"


async def test_options_choose_the_interval_the_clock_and_where_the_profile_goes(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run(f"%load_ext tornado_rbkit\n{SEEN}")
        clock = "cpu" if sys.platform == "linux" else "wall"
        assert await kernel.run(f"%%rbkit -i 2ms -c {clock} -o profile -q\n{WORK}") == []
        [output] = await kernel.run("profile")
        page = output["data"]["text/html"]
        assert re.search(r"<td>[\d.]+ %</td><td>[\d.]+ %</td><td>3</td><td[^>]*>\xa0{4}return \[str", page)


async def test_the_memory_of_a_cell_is_shown_and_the_cell_runs_as_any_does(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run("%load_ext tornado_rbkit\nimport asyncio")
        outputs = await kernel.run("%%rbkit memory -o memory\nkept = [bytes(10**6) for _ in range(8)]\nlen(kept)")
        result, shown = outputs
        assert result["data"]["text/plain"] == "8"
        row = r"<td>7\.6 MiB</td><td>(1\.\d KiB)?</td><td>7\.6 MiB</td><td>2</td>"  # a comprehension frees about 1 KiB
        assert re.search(row, shown["data"]["text/html"])
        assert "7.6 MiB kept" in shown["data"]["text/plain"]
        assert await kernel.text("print(memory.lines[2].kept > 8 * 10**6)") == "True\n"
        half = (
            "before = bytes(10**6)\n%rbkit memory -o memory -q\nawait asyncio.sleep(0)\nkept.append(bytes(2 * 10**6))"
        )
        assert await kernel.run(half) == [], "the rest of a cell, which may await"
        assert await kernel.text("print({n: m.kept // 10**6 for n, m in memory.lines.items() if m.kept > 10**6})") == (
            "{4: 2}\n"
        )
        kinds = [output["kind"] for output in await kernel.run("%%rbkit memory\n1 / 0")]
        assert kinds == ["display_data", "error"] or kinds == ["error", "display_data"]
        assert await kernel.text("import sys, tracemalloc\nprint(tracemalloc.is_tracing())") == "False\n"


async def test_what_is_asked_wrongly_is_reported_in_a_line(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await kernel.run("%load_ext tornado_rbkit")
        for code, told in [
            ("%rbkit", "allowed: start, stop, status, snapshot, memory"),
            ("%rbkit begin", "%rbkit begin: unknown; allowed"),
            ("%rbkit snapshot", "%rbkit start starts it"),
            ("%%rbkit start\n1", "%%rbkit: unrecognized arguments: start; allowed: [-i INTERVAL]"),
            ("%%rbkit -i soon\n1", "allowed: [-i INTERVAL]"),
            ("%%rbkit -i -1\n1", "cpu_sampling_interval"),
            ("%%rbkit -o 1\n1", "-o 1: not the name of a variable"),
            ("%%rbkit memory -c cpu\n1", "%rbkit memory: unrecognized arguments: -c cpu; allowed: [-o NAME] [-q]"),
            ("import tracemalloc\ntracemalloc.start()\n%rbkit memory", "tracemalloc.stop() ends it"),
        ]:
            assert told in await kernel.text(code)


async def test_the_dashboard_of_a_kernel_opens_before_the_next_look_for_kernels(
    jupyter: StartJupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.web.discovered.SCAN_INTERVAL", 1000.0)
    server = await jupyter()
    async with server.kernel() as kernel:
        await until(lambda: server.extension.bridges._thread.is_alive(), "the first look is over")
        await start(kernel)
        name = f"Analysis-{kernel.id[:8]}"
        assert await server.knock(f"rbkit/{name}/ws") == 404
        assert (await server.get(f"rbkit/?target={name}")).code == 200
        assert await server.knock(f"rbkit/{name}/ws") == 101


async def test_start_again_announces_the_profiler_again(jupyter: StartJupyter) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        await start(kernel)
        await kernel.run("from tornado_rbkit.profiler import current_server\ncurrent_server().file.unlink()")
        await start_again(kernel)
        assert await kernel.text("print(current_server().file.exists())") == "True\n"


async def test_there_is_no_link_that_cannot_hold(jupyter: StartJupyter, tmp_path: Path) -> None:
    server = await jupyter()
    async with server.kernel() as kernel:
        assert "text/html" in await start(kernel)
        await kernel.run("import os\nname = os.environ.pop('JPY_SESSION_NAME')")
        assert "text/html" not in await start_again(kernel), "a gateway gives its kernels no notebook's name"
        await kernel.run("os.environ['JPY_SESSION_NAME'] = name")
        assert "text/html" in await start_again(kernel)
        (tmp_path / "file").touch()
        await kernel.run(f"os.environ['RBKIT_RUNTIME_DIR'] = {str(tmp_path / 'file')!r}")
        await kernel.run("from tornado_rbkit.profiler import current_server\ncurrent_server().file.unlink()")
        shown = await start_again(kernel)
        assert "text/html" not in shown, "the Jupyter server cannot find it"
        assert "`tornado-rbkit serve --pub " in shown["text/plain"]
