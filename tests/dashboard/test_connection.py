"""The choice of the profiler, the state of the connection, and the commands that may be sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading

import msgpack
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tests.dashboard.conftest import TICKED, Page, Script, Serve, scripted
from tests.fake_rbkit import FakeRbkit, rbkit_process
from tornado_rbkit import AssetHandler, Bridge, IndexHandler, RbkitWebSocketHandler, StatusHandler
from tornado_rbkit.protocol import COMMANDS, TRACING_COMMANDS

HANDSHAKE_SECONDS = 5
"""Seconds between two handshakes that the page sends."""


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
        ("Record memory", "memory"),
        ("Record CPU", "memory and CPU"),
        ("Stop memory", "CPU"),
        ("Stop CPU", "nothing"),
    ]:
        page.click(label)
        page.until(lambda now=recorded: page.facts["recording"] == now, f"recording is {recorded}")  # type: ignore[misc]
    page.click("CPU")
    for label in ["CPU clock", "Wall clock", "Snapshot", "Collect garbage", "Ask again"]:
        page.click(label)
    page.until(
        lambda: {command.decode() for command in rbkit.received} == COMMANDS - TRACING_COMMANDS,
        "all nine have reached rbkit",
    )
    assert page.alerts == []


def test_rbkit_as_it_was_tagged_is_shown_and_its_cpu_buttons_say_why_not(page: Page, site: Serve) -> None:
    with FakeRbkit(tagged=True) as tagged:
        heap = [{3: 1, 4: "Order", 5: [2], 8: 40}, {3: 2, 4: "String", 5: [], 8: 40}]
        snapshot = {0: 7, 1: 1795388434784.0, 9: 0, 2: [{0: 5, 1: 1795388434784.0, 2: heap}]}
        tagged.snapshot = msgpack.packb(snapshot, use_bin_type=False)
        page.open(site(tagged).url)
        page.until_live()
        page.click("Record memory")
        page.until(lambda: page.facts["recording"] == "memory", "the rest works")
        assert "protocol 2.1" in str(page.obstacle("Record CPU"))
        assert "crashes" in str(page.button("Snapshot").get_attribute("title"))
        page.click("Snapshot")
        page.until(lambda: {row[0] for row in page.rows("Classes")} == {"Order", "String"}, "it ends with its message")
        assert page.alerts == []


def test_what_another_viewer_starts_is_shown(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open_with(site(rbkit).url, "", TICKED)
    page.until_live()
    rbkit.enabled.add("cpu_profiling")
    page.tick(HANDSHAKE_SECONDS)
    page.until(lambda: page.facts["recording"] == "CPU", "the page has asked again")
    assert page.button("Stop CPU").get_attribute("aria-pressed") == "true"


def test_a_read_only_server_s_buttons_say_so(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit, access={"read_only": True}).url, "snapshots")
    page.until_live()
    for label in ["Record memory", "Snapshot", "Collect garbage", "Take a snapshot"]:
        assert "read-only" in str(page.obstacle(label))
    page.click("CPU")
    assert "read-only" in str(page.obstacle("CPU clock"))
    page.press(lambda: page.button("Snapshot"))
    page.click("Ask again")
    assert set(rbkit.received) == {b"handshake"}


def test_a_command_that_waits_holds_the_others(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    page.until_live()
    rbkit.answering.clear()
    page.click("Collect garbage")
    page.until(lambda: page.obstacle("Snapshot") == "another command is waiting for its reply", "it is held")
    rbkit.answering.set()
    page.until(lambda: page.obstacle("Snapshot") is None, "it can be given again")


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
    page.click("Record memory")
    page.until(lambda: page.alerts, "there is an alert")
    assert "`authorize`" in page.alerts[0]
    assert page.facts["recording"] == "nothing"


def test_a_profiler_that_is_not_there_is_waited_for(page: Page, site: Serve) -> None:
    with rbkit_process(started=False) as rbkit:
        page.open(site(rbkit, options={"connect_timeout": 0.2}).url)
        page.until(lambda: page.state == "waiting for the profiler", "it waits")
        page.until(lambda: f"rbkit server is not running at {rbkit.req}" in page.text, "it says for whom")
        assert "not connected" in str(page.obstacle("Snapshot"))
        page.until(lambda: "Trying again in" in page.text, "it says when")
        rbkit.start()
        page.until_live()


def test_one_that_dies_and_comes_back_is_another_process(page: Page, site: Serve) -> None:
    with rbkit_process() as rbkit:
        page.open(site(rbkit).url)
        page.until_live()
        page.click("Record memory")
        page.until(lambda: "0 messages" not in page.text_of("footer"), "it publishes")
        before = page.facts["pid"]
        rbkit.kill()
        page.until(lambda: page.state == "waiting for the profiler", "its end is seen")
        rbkit.start()
        page.until(lambda: page.facts.get("pid") == str(rbkit.pid), "the new one is seen")
        page.until(lambda: any("was restarted" in text for text in page.alerts), "it is said")
        page.choose("Process", f"earlier process, pid {before}")
        page.choose("Process", "newest process")


def test_a_server_that_goes_away_is_tried_again(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    server = site(rbkit)
    page.expected_console = ["WebSocket connection to", "Failed to load resource: net::ERR_"]
    page.open(server.url)
    page.until_live()
    server.stop()
    page.until(lambda: page.state == "connection lost", "it is lost")
    page.until(lambda: "Trying again in" in page.text, "it says when it tries again")
    server.start()
    page.until_live()


def test_another_major_version_of_the_protocol_is_reported(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    message = msgpack.unpackb(rbkit.handshake(), strict_map_key=False)
    message[2]["rbkit_protocol_version"] = "3.0"
    reply = msgpack.packb(message)
    rbkit.handshake = lambda: reply  # type: ignore[method-assign]
    page.open(site(rbkit).url)
    page.until(lambda: any("speaks protocol 3.0; this page supports 2" in text for text in page.alerts), "it is said")
    assert page.facts["rbkit"] == "0.1.10, protocol 3.0, of which this page supports 2"


@pytest.mark.parametrize("prefix", ["", "/user/jo/proxy/8765/rbkit"])
def test_it_works_beneath_any_prefix_and_with_a_token(page: Page, site: Serve, rbkit: FakeRbkit, prefix: str) -> None:
    server = site(rbkit, prefix=prefix, access={"token": "secret"})
    page.open(f"{server.url}?token=secret")
    page.until_live()


def test_the_token_leaves_the_address_and_a_reload_finds_it(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    server = site(one=rbkit, access={"token": "sec ret"})
    page.expected_console = ["401"]
    page.open(f"{server.url}?token=sec%20ret&target=one", "objects")
    page.until_live()
    for _ in range(2):
        assert page.driver.current_url == f"{server.url}?target=one#objects"
        page.driver.refresh()
        page.until_live()
    assert {request.headers.get("Referer") for request in server.requests} == {None}
    # A copied link opens for nobody who has not the token, and asks for it.
    page.driver.switch_to.new_window("tab")
    page.driver.get(f"{server.url}?target=one#objects")
    page.until(lambda: "the token is missing or wrong" in page.text, "it asks for the token")
    page.one("input").send_keys("wrong")
    page.press("button")
    page.until(lambda: page.driver.current_url.count("token=wrong") == 1, "the wrong one is tried")
    page.until(lambda: page.one("input").get_attribute("value") == "", "it asks again")
    page.one("input").send_keys("sec ret")
    page.press("button")
    page.until_live()
    assert page.driver.current_url == f"{server.url}?target=one#objects"


def test_a_query_that_the_server_did_not_ask_for_stays(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(f"{site(rbkit).url}?token=the-application-s-own")
    page.until_live()
    assert "token=the-application-s-own" in page.driver.current_url


def test_it_asks_for_binary_whatever_the_server_s_default(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    server = site(rbkit, options={"default_encoding": "escaped"})
    page.open(server.url)
    page.until_live()
    page.open(f"{server.url}?encoding=escaped")
    page.until_live()


def test_a_reply_that_is_nonsense_holds_no_button(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    rbkit.reply[b"trigger_gc"] = "r\u00e9ussi \0".encode()
    page.open(site(rbkit).url)
    page.until_live()
    page.click("Collect garbage")
    page.until(lambda: b"trigger_gc" in rbkit.received, "it is asked")
    page.until(lambda: page.obstacle("Snapshot") is None, "others can be given again")


def test_a_handshake_that_is_nonsense_is_reported(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    nonsense = msgpack.packb({0: 8, 1: 1.0, 2: None})
    rbkit.handshake = lambda: nonsense  # type: ignore[method-assign]
    page.open_with(site(rbkit).url, "", TICKED)
    page.until(lambda: page.state == "waiting for the profiler", "it is not live")
    page.until(lambda: "the reply to handshake could not be read" in page.text, "it says why")
    del rbkit.handshake
    page.tick(HANDSHAKE_SECONDS)
    page.until_live()


def test_lengths_that_are_claimed_break_nothing(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "objects")
    page.until_live()
    script.rbkit.publish(b"\xdd\x01\xc9\xc3\x80" * 60)
    script.publish((0.0, 0, {3: 1, 4: "Thing"}), (0.0, 0, {3: 2, 4: 5}), (float("nan"), 0, {3: 3, 4: "Thing"}))
    page.until(lambda: "2 not readable" in page.text_of("footer"), "they are counted")
    page.until(lambda: page.row("Live objects", "Thing")[0] == "1", "the next is shown")
    assert page.row("Live objects", "5")[0] == "1"


def test_counters_that_fall_again_and_again_are_not_reported_for_each(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    for number in range(300):
        script.rbkit.counter = 1000 + number if number % 2 else number
        script.publish((0.001 * number, 0, {3: number, 4: "Thing"}))
    page.until(lambda: "300 messages" in page.text_of("footer"), "all have come")
    page.until(lambda: any("message_counter keeps decreasing" in text for text in page.alerts), "it is told")
    assert len(page.alerts) <= 4  # the bridge tells it as well, once


class Middlebox(threading.Thread):
    """Forwards connections; after `forget`, the open ones get no more data and are never closed."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._age = 0
        self._sockets: list[socket.socket] = []
        self.start()

    def forget(self) -> None:
        self._age += 1

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return  # closed
            far = socket.create_connection(("127.0.0.1", self._to))
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other, self._age), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, age: int) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if age == self._age:
                    other.sendall(data)
            if age == self._age:
                other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in [self._listening, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_a_connection_that_is_dead_without_a_close_is_lost_and_another_is_opened(
    page: Page, site: Serve, rbkit: FakeRbkit
) -> None:
    server = site(rbkit)
    box = Middlebox(server.port)
    try:
        page.open_with(server.url.replace(str(server.port), str(box.port)), "", TICKED)
        page.until_live()
        box.forget()

        def is_lost() -> bool:
            page.tick(1)
            return "nothing arrived for" in page.text

        page.until(is_lost, "it is lost")
        page.until_live()
        page.driver.get("about:blank")
    finally:
        box.close()


@pytest.mark.parametrize("status", [400, 403])
async def test_an_upgrade_that_something_in_between_refuses_is_reported(
    page: Page, rbkit: FakeRbkit, status: int
) -> None:
    class Refusing(RequestHandler):
        def get(self) -> None:
            self.set_status(status)
            self.finish("refused")

    page.expected_console = ["WebSocket connection to"]
    bridge = Bridge(**rbkit.endpoints)
    http = HTTPServer(
        Application(
            [
                (r"/profiler/", IndexHandler, {"bridge": bridge}),
                (r"/profiler/ws", Refusing),
                (r"/profiler/status", StatusHandler, {"bridge": bridge}),
                (r"/profiler/static/(.*)", AssetHandler),
            ]
        )
    )
    sockets = bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)

    def look() -> None:
        page.open(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/profiler/")
        page.until(lambda: page.state == "no WebSocket", "it is told")
        page.until(lambda: "Upgrade" in page.text and "allowed_origins" in page.text, "the two causes are named")
        page.until(lambda: "Trying again in" in page.text, "it is tried again")
        page.driver.get("about:blank")

    await asyncio.to_thread(look)
    http.stop()
    await bridge.close()
    await http.close_all_connections()


async def test_a_page_of_html_is_not_shown_as_the_reason_of_a_refusal(page: Page, rbkit: FakeRbkit) -> None:
    class Refusing(RequestHandler):
        def get(self) -> None:
            self.set_status(403)
            self.finish("<html><body>the login page</body></html>")

    page.expected_console = ["WebSocket connection to", "403 (Forbidden)"]
    bridge = Bridge(**rbkit.endpoints)
    index = (r"/profiler/", IndexHandler, {"bridge": bridge})
    http = HTTPServer(
        Application([index, (r"/profiler/(?:ws|status)", Refusing), (r"/profiler/static/(.*)", AssetHandler)])
    )
    sockets = bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)

    def look() -> None:
        page.open(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/profiler/")
        page.until(lambda: page.state == "refused" and "the server answers with 403" in page.text, "it is refused")
        assert "login page" not in page.text
        page.driver.get("about:blank")

    await asyncio.to_thread(look)
    http.stop()
    await bridge.close()
    await http.close_all_connections()


def test_a_refused_websocket_says_why(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    allowed = {"now": True}
    page.expected_console = ["WebSocket connection to", "403"]
    server = site(rbkit, access={"authorize": lambda handler, command: allowed["now"]})
    page.open_with(server.url, "", TICKED)
    page.until_live()
    allowed["now"] = False
    page.tick(HANDSHAKE_SECONDS)
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


def test_what_cannot_be_read_is_counted_and_the_rest_continues(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    script.rbkit.publish(b"\xc1 is not MessagePack")
    script.publish((0.0, 0, {3: 1, 4: "Thing"}))
    page.until(lambda: "1 not readable" in page.text_of("footer"), "it is counted")
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


SILENT_LIST = """
const [every, ask] = [setInterval, fetch];
window.setInterval = (act, ms) => every(() => { act(); if (ms === 5000) window.passed++; }, ms / 50);
window.asked = [];
window.fetch = (url, options) => {
    if (!window.silent || !String(url).startsWith("targets")) return ask(url, options);
    asked.push(options?.signal instanceof AbortSignal);
    return new Promise(() => {});
};
"""
"""Have a server that is `silent` answer no request for its list, and time pass faster."""


def test_a_list_of_profilers_that_is_not_answered_is_not_asked_for_again_and_again(
    page: Page, site: Serve, rbkit: FakeRbkit
) -> None:
    with scripted(page.driver, SILENT_LIST):
        page.open(site(one=rbkit).url)
    page.until_live()
    page.script("window.silent = true; window.passed = 0")
    page.until(lambda: page.script("return passed") > 20, "it was time to ask twenty times")
    assert page.script("return asked") == [True], "one request, which ends"
