"""Which profiler the page follows, how it is with it, and what may be asked of it."""

from __future__ import annotations

import asyncio
import os

import msgpack
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.dashboard.conftest import Page, Script, Serve
from tests.fake_rbkit import FakeRbkit, rbkit_process
from tornado_rbkit import AssetHandler, Bridge, IndexHandler, RbkitWebSocketHandler
from tornado_rbkit.protocol import COMMANDS

OFTEN = "const plain = setInterval; self.setInterval = (act, ms) => plain(act, ms / 20);"
"""Have the page's worker ask each quarter of a second what is recorded, not each five seconds."""


def test_it_says_who_is_profiled_and_what_is_recorded(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    page.until_live()
    assert page.facts == {
        "process": "fake",
        "pid": str(os.getpid()),
        "directory": "/srv",
        "rbkit": "0.1.10, protocol 2.1",
        "clock": "wall",
        "recording": "nothing",
    }
    assert page.driver.title == "fake: rbkit"


def test_all_commands_can_be_given(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    for label, recorded in [
        ("Start memory profile", "memory"),
        ("Start CPU profiling", "memory and CPU"),
        ("Stop memory profile", "CPU"),
        ("Stop CPU profiling", "nothing"),
    ]:
        page.click(label)
        page.until(lambda now=recorded: page.facts["recording"] == now, f"recording is {recorded}")  # type: ignore[misc]
    for label in ["CPU clock", "Wall clock", "Heap snapshot", "Collect garbage", "Ask again"]:
        page.click(label)
    page.until(lambda: {command.decode() for command in rbkit.received} == COMMANDS, "all nine have reached rbkit")
    assert page.alerts == []


def test_what_another_viewer_starts_is_shown(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open_with(site(rbkit).url, "", OFTEN)
    page.until_live()
    rbkit.enabled.add("cpu_profiling")
    page.until(lambda: page.facts["recording"] == "CPU", "the page has asked again")
    assert page.button("Stop CPU profiling").get_attribute("aria-pressed") == "true"


def test_a_read_only_server_s_buttons_say_so(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit, access={"read_only": True}).url, "snapshots")
    page.until_live()
    for label in ["Start memory profile", "Heap snapshot", "Collect garbage", "CPU clock", "Take a snapshot"]:
        assert "read-only" in str(page.obstacle(label))
    page.button("Heap snapshot").click()
    page.click("Ask again")
    assert set(rbkit.received) == {b"handshake"}


def test_a_command_that_waits_holds_the_others(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    page.until_live()
    rbkit.answering.clear()
    page.click("Collect garbage")
    page.until(lambda: page.obstacle("Heap snapshot") == "another command is waiting for its reply", "it is held")
    rbkit.answering.set()
    page.until(lambda: page.obstacle("Heap snapshot") is None, "it can be given again")


def test_the_bridge_s_words_are_shown_when_a_command_fails(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit, options={"command_timeouts": {"trigger_gc": 0.2}}).url)
    page.until_live()
    rbkit.answering.clear()
    page.click("Collect garbage")
    page.until(lambda: page.alerts, "there is an alert")
    assert page.alerts[0].startswith("trigger_gc: ")
    assert "0.2 s" in page.alerts[0]
    rbkit.answering.set()


def test_a_refusal_of_the_application_is_shown(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    access = {"authorize": lambda handler, command: command in ("handshake", "trigger_gc")}
    page.open(site(rbkit, access=access).url)
    page.click("Start memory profile")
    page.until(lambda: page.alerts, "there is an alert")
    assert "`authorize`" in page.alerts[0]
    assert page.facts["recording"] == "nothing"


def test_a_profiler_that_is_not_there_is_waited_for(page: Page, site: Serve) -> None:
    with rbkit_process(started=False) as rbkit:
        page.open(site(rbkit, options={"connect_timeout": 0.2}).url)
        page.until(lambda: page.state == "waiting for the profiler", "it waits")
        page.until(lambda: f"rbkit server is not running at {rbkit.req}" in page.text, "it says for whom")
        assert "not connected" in str(page.obstacle("Heap snapshot"))
        page.until(lambda: "Trying again in" in page.text, "it says when")
        rbkit.start()
        page.until_live()


def test_one_that_dies_and_comes_back_is_another_process(page: Page, site: Serve) -> None:
    with rbkit_process() as rbkit:
        page.open(site(rbkit).url)
        page.until_live()
        page.click("Start memory profile")
        page.until(lambda: "0 messages" not in page.one("footer").text, "it publishes")
        before = page.facts["pid"]
        rbkit.kill()
        page.until(lambda: page.state == "waiting for the profiler", "its end is seen")
        rbkit.start()
        page.until(lambda: page.facts.get("pid") == str(rbkit.pid), "the new one is seen")
        page.until(lambda: any("was restarted" in text for text in page.alerts), "it is said")
        page.choose("Process", f"process before, pid {before}")
        page.choose("Process", "process: the newest")


def test_a_server_that_goes_away_is_tried_again(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    server = site(rbkit)
    page.expected_console = ["WebSocket connection to", "ERR_CONNECTION_REFUSED"]
    page.open(server.url)
    page.until_live()
    server.stop()
    page.until(lambda: page.state == "connection lost", "it is lost")
    page.until(lambda: "Trying again in" in page.text, "it says when it tries again")
    server.start()
    page.click("Try now")
    page.until_live()


def test_another_major_version_of_the_protocol_is_said(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    message = msgpack.unpackb(rbkit.handshake(), strict_map_key=False)
    message[2]["rbkit_protocol_version"] = "3.0"
    reply = msgpack.packb(message)
    rbkit.handshake = lambda: reply  # type: ignore[method-assign]
    page.open(site(rbkit).url)
    page.until(lambda: any("speaks protocol 3.0; this page knows 2" in text for text in page.alerts), "it is said")
    assert page.facts["rbkit"] == "0.1.10, protocol 3.0, of which this page knows 2"


def test_several_profilers_can_be_chosen_from(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    with FakeRbkit() as other:
        other.enabled.add("memory_profile")
        page.open(site(one=rbkit, two=other).url)
        page.until_live()
        assert page.facts["recording"] == "nothing"
        page.choose("Profiler", "two")
        page.until(lambda: page.facts.get("recording") == "memory", "it follows the other")
        assert page.driver.current_url.endswith("?target=two#memory")
        page.driver.refresh()
        page.until(lambda: page.facts.get("recording") == "memory", "the address has the choice")


@pytest.mark.parametrize("prefix", ["", "/user/jo/proxy/8765/rbkit"])
def test_it_works_beneath_any_prefix_and_with_a_token(page: Page, site: Serve, rbkit: FakeRbkit, prefix: str) -> None:
    server = site(rbkit, prefix=prefix, access={"token": "secret"})
    page.open(f"{server.url}?token=secret")
    page.until_live()


def test_a_refused_websocket_says_why(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    allowed = {"now": True}
    page.expected_console = ["WebSocket connection to", "403"]
    server = site(rbkit, access={"authorize": lambda handler, command: allowed["now"]})
    page.open_with(server.url, "", OFTEN)
    page.until_live()
    allowed["now"] = False
    page.until(lambda: page.state == "refused" and "not authorized any more" in page.text, "it is refused")
    page.click("Try now")
    page.until(lambda: "not allowed by the setting `authorize`" in page.text, "the server's words are shown")
    allowed["now"] = True
    page.click("Try now")
    page.until_live()


def test_a_new_viewer_is_counted(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    server = site(rbkit)
    page.open(server.url)
    page.until_live()
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open(server.url)
    page.until_live()
    page.driver.close()
    page.driver.switch_to.window(first)
    page.until(lambda: page.facts.get("viewers") == "2", "the other is counted")


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    script.rbkit.publish(b"\xc1 is not MessagePack")
    script.publish((0.0, 0, {3: 1, 4: "Thing"}))
    page.until(lambda: "1 not readable" in page.one("footer").text, "it is counted")
    page.click("Objects")
    page.until(lambda: page.row("Live objects", "Thing")[0] == "1", "the next is shown")


async def test_the_page_can_be_mounted_by_itself(page: Page, rbkit: FakeRbkit) -> None:
    bridge = Bridge(**rbkit.endpoints)
    http = HTTPServer(
        Application(
            [
                (r"/profiler/", IndexHandler, {"bridge": bridge}),
                (r"/profiler/ws", RbkitWebSocketHandler, {"bridge": bridge}),
                (r"/profiler/static/(.*)", AssetHandler),
            ]
        )
    )
    sockets = bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)

    def look() -> None:
        page.open(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/profiler/")
        page.until_live()

    await asyncio.to_thread(look)
    http.stop()
    await bridge.close()
    await http.close_all_connections()
