"""The output of the program that reads the stacks of CPython 3.14 and 3.15."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiler.conftest import PATIENCE
from tests.profiler.external.conftest import Start, interpreters
from tornado_rbkit.profiler.external import stack_reader
from tornado_rbkit.profiler.external.engine import Stack
from tornado_rbkit.profiler.external.mojo import MojoParser, integer
from tornado_rbkit.profiler.external.stack_reader import COOKIE, Lines, ReadError, StackReader, python_version

if not sys.platform.startswith("linux"):
    pytest.skip("the stack reader works on Linux only", allow_module_level=True)

KNOWN = {version: path for version, path in interpreters().items() if version in ("3.14", "3.15")}


@pytest.fixture(params=list(KNOWN.values()), ids=list(KNOWN))
def newer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def until_asleep(pid: int) -> None:
    """Wait until the main thread reads its input, a moment after its line was written."""
    computing = stack_reader.Computing(pid)
    deadline = time.monotonic() + PATIENCE
    while computing(pid):
        assert time.monotonic() < deadline


def look(pid: int, is_computing: stack_reader.IsComputing | None = None) -> list[Stack]:
    """Return the stacks of one look, in which each thread is the last one once."""
    reader = StackReader(pid)
    reader.look(0, is_computing)
    stacks = MojoParser().feed(bytes(reader.output.data) + b"\x02\x00\x001\x00")
    assert not any(stack.is_broken for stack in stacks)
    return stacks


def scopes(stack: Stack) -> list[str]:
    return [frame.scope for frame in stack.frames]


NESTED = """
    import sys, threading
    class Job:
        def __init__(self):
            next(self.steps())
        def steps(self):
            yield sorted([1], key=self.key)
        def key(self, _):
            print("ready", flush=True)
            sys.stdin.read()
    def call():
        return Job()
    for _ in range(1):
        list(map(lambda _: call(), [1]))
"""


def test_a_stack_is_whole_where_c_code_has_called_python(start: Start, newer: str) -> None:
    process = start(NESTED, newer)
    until_asleep(process.pid)
    [stack] = look(process.pid)
    inner = ["<module>", "<lambda>", "call", "Job.__init__", "Job.steps", "Job.key"]
    assert scopes(stack)[:6] == inner
    assert [frame.line for frame in stack.frames[:6]] == [14, 14, 12, 5, 7, 10]
    assert {os.path.basename(frame.file) for frame in stack.frames[:6]} == {"target.py"}


def test_the_interpreter_s_own_frame_of_a_specialized_call_is_left_out(start: Start, newer: str) -> None:
    [stack] = look(
        start(
            """
            import sys
            class Thing:
                def __init__(self, last):
                    if last:
                        print("ready", flush=True)
                        sys.stdin.read()
            def make(last):
                return Thing(last)
            for number in range(10_000):
                make(number == 9999)
            """,
            newer,
        ).pid
    )
    assert scopes(stack)[:3] == ["<module>", "make", "Thing.__init__"]


def test_names_and_files_are_read_in_every_alphabet(start: Start, newer: str) -> None:
    source = """
    import sys
    def wait():
        print("ready", flush=True)
        sys.stdin.read()
    scope = {"wait": wait}
    for file, name in [("käse.py", "grün"), ("данные.py", "ждать"), ("漢字.py", "待つ"), ("😀.py", "平")]:
        exec(compile(f"def {name}(inner):\\n    inner()", file, "exec"), scope)
    grün, ждать, 待つ, 平 = (scope[name] for name in ("grün", "ждать", "待つ", "平"))
    平(lambda: 待つ(lambda: ждать(lambda: grün(wait))))
    """
    [stack] = look(start(source, newer).pid)
    named = [(frame.file, frame.scope) for frame in stack.frames if frame.scope in ("grün", "ждать", "待つ", "平")]
    assert named == [("😀.py", "平"), ("漢字.py", "待つ"), ("данные.py", "ждать"), ("käse.py", "grün")]


def test_every_interpreter_of_a_process_is_read(start: Start, newer: str) -> None:
    process = start(
        """
        import sys, threading
        import _interpreters
        def run():
            inside = "def inside():\\n print('ready', flush=True)\\n import time\\n time.sleep(1000)\\ninside()"
            _interpreters.run_string(_interpreters.create(), inside)
        threading.Thread(target=run, daemon=True).start()
        sys.stdin.read()
        """,
        newer,
    )
    deadline = time.monotonic() + PATIENCE
    found: dict[str, int] = {}
    while not {"inside", "run", "<module>"} <= found.keys():
        assert time.monotonic() < deadline, found
        found = {scope: stack.interpreter for stack in look(process.pid) for scope in scopes(stack)[-1:]}
    assert found["inside"] != found["run"]


def test_a_collection_is_seen(start: Start, newer: str) -> None:
    process = start(
        """
        import gc, sys
        class Slow:
            def __del__(self):
                print("ready", flush=True)
                sys.stdin.read()
        slow = Slow()
        slow.slow = slow
        del slow
        gc.collect()
        """,
        newer,
    )
    [stack] = look(process.pid)
    assert scopes(stack)[:2] == ["<module>", "Slow.__del__"]
    assert stack.is_collecting


def test_code_that_is_compiled_anew_at_the_same_place_has_its_new_name(start: Start, newer: str) -> None:
    """A code object that is freed leaves its address, and its frames' memory, to the next one."""
    process = start(
        """
        import sys
        print("ready", flush=True)
        for number in range(1000):
            scope = {"wait": lambda: sys.stdin.readline()}
            exec(f"def name_{number:03}():\\n wait()\\nname_{number:03}()", scope)
            print("left", flush=True)
        """,
        newer,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reader = StackReader(process.pid)
    parser = MojoParser()
    names: list[str] = []
    for _ in range(50):
        until_asleep(process.pid)
        reader.look(0)
        stacks = parser.feed(bytes(reader.output.data) + b"\x02\x00\x001\x00")
        reader.output.data.clear()
        names += [scope for stack in stacks for scope in scopes(stack) if scope.startswith("name_")]
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "left\n"
    assert names == sorted(set(names)), "no name comes twice, or late"
    assert len(names) > 25, "the reader may look between two of them"


def test_it_ends_with_the_process_and_on_request(start: Start, newer: str) -> None:
    command = [sys.executable, "-I", "-S", stack_reader.__file__]
    for end in ("process", "request", "reader"):
        process = start(NESTED, newer)
        with subprocess.Popen([*command, str(process.pid), "1000", "wall"], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            assert reader.stdout.read(4) == b"MOJ\x03"
            if end == "process":
                process.kill()
            elif end == "request":
                reader.send_signal(signal.SIGTERM)
            else:
                reader.stdout.close()
            assert reader.wait(PATIENCE) == (1 if end == "process" else 0)


def test_a_thread_that_sleeps_is_marked_with_the_cpu_clock(start: Start, newer: str) -> None:
    process = start(NESTED, newer)
    until_asleep(process.pid)
    [stack] = look(process.pid, stack_reader.Computing(process.pid))
    assert stack.is_idle


def refused(table: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return why a process with a table is refused."""
    monkeypatch.setattr(stack_reader, "find_table", lambda memory: 0)
    monkeypatch.setattr(stack_reader.Memory, "read", lambda _, address, size: table[address : address + size])
    with pytest.raises(ReadError) as caught:
        StackReader(os.getpid())
    return str(caught.value)


def test_what_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def table(version: int, *words: int) -> bytes:
        return COOKIE + struct.pack("<128Q", version, *words, *[0] * (127 - len(words)))

    assert refused(table(0x031000F0), monkeypatch) == "it runs CPython 3.16; known: 3.14 and 3.15"
    assert "without a GIL" in refused(table(0x030E00F0, 1), monkeypatch)
    backwards = table(0x030E00F0, 0, *range(100, 0, -1))
    assert refused(backwards, monkeypatch) == "its structures are not those of CPython 3.14 or 3.15"


def test_the_version_of_a_process_is_found(start: Start, newer: str) -> None:
    assert python_version(start(NESTED, newer).pid) in ((3, 14), (3, 15))
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert python_version(process.pid) is None
        finally:
            process.kill()


def compiled(count: int) -> Callable[..., object]:
    """Return a function whose lines are far apart, and on which some instructions have no line."""
    body = "".join("\n" * (7 * number) + f"    x = [y for y in range({number}) if y]\n" for number in range(count))
    scope: dict[str, Callable[..., object]] = {}
    exec(f"def function():\n    try:\n        pass\n    finally:\n        pass\n{body}", scope)
    return scope["function"]


if sys.version_info >= (3, 11):  # the table has this format

    @given(st.integers(0, 40))
    def test_lines_are_those_of_the_code(count: int) -> None:
        code = compiled(count).__code__
        lines = Lines(code.co_linetable, code.co_firstlineno)
        for begin, end, line in code.co_lines():
            assert {lines.line(offset) for offset in range(begin, end, 2)} <= {line or 0}
        assert lines.line(len(code.co_code) + 2) == lines.line(-2) == 0


@given(st.integers(0, (1 << 63) - 1))
def test_integers_are_those_of_the_format(value: int) -> None:
    assert integer(stack_reader._integer(value)) == value
