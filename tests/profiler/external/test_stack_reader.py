"""The stacks that the program `stack_reader` reads, from every interpreter that is installed."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiler.conftest import PATIENCE, wait_until
from tests.profiler.external.conftest import Start
from tornado_rbkit.profiler.external import stack_reader
from tornado_rbkit.profiler.external.engine import Stack
from tornado_rbkit.profiler.external.mojo import MojoParser, integer
from tornado_rbkit.profiler.external.stack_reader import layouts, output, sampling, symbols
from tornado_rbkit.profiler.external.stack_reader.clocks import Clocks
from tornado_rbkit.profiler.external.stack_reader.codes import is_unchanged, joined
from tornado_rbkit.profiler.external.stack_reader.frames import MAX_DEPTH
from tornado_rbkit.profiler.external.stack_reader.layouts import COOKIE, python_version
from tornado_rbkit.profiler.external.stack_reader.lines import Lines, deltas, locations
from tornado_rbkit.profiler.external.stack_reader.memory import Memory, ReadError
from tornado_rbkit.profiler.external.stack_reader.reader import StackReader
from tornado_rbkit.profiler.external.stack_reader.sampling import look_once

if not sys.platform.startswith("linux"):
    pytest.skip("the stack reader works on Linux only", allow_module_level=True)


Open = Callable[[int], StackReader]


@pytest.fixture
def open_reader() -> Iterator[Open]:
    """Open the reader of a process, and close it after the test."""
    with ExitStack() as stack:
        yield lambda pid: stack.enter_context(closing(StackReader(pid)))


def until_idle(pid: int) -> None:
    """Wait until no thread has run for a moment; the main thread reads its input some time after it has printed."""

    def is_idle() -> bool:
        before = asleep(pid)
        time.sleep(0.001)
        return before is not None and asleep(pid) == before

    wait_until(is_idle, "no thread runs")


def asleep(pid: int) -> dict[str, str] | None:
    """Return what each thread of a process has used by now; None if one of them runs."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    if any((task / "stat").read_text().rpartition(")")[2].split()[0] != "S" for task in tasks):
        return None
    return {task.name: (task / "schedstat").read_text() for task in tasks}


def look(pid: int, clocks: Clocks | None = None) -> list[Stack]:
    """Return the stacks of one look at a process that waits."""
    until_idle(pid)
    with closing(StackReader(pid)) as reader:
        return look_again(reader, MojoParser(), clocks)


def look_again(reader: StackReader, parser: MojoParser, clocks: Clocks | None = None) -> list[Stack]:
    """Return the stacks of one look of a reader whose other output the parser has read."""
    reader.look(0, clocks)
    stacks = parser.feed(bytes(reader.output.data) + b"\x02\x00\x001\x00")  # a stack ends where the next begins
    reader.output.data.clear()
    assert not any(stack.is_broken for stack in stacks)
    return [stack for stack in stacks if stack.frames]


def scopes(stack: Stack) -> list[str]:
    """Return the names of the functions, outermost first, without their classes, which Python 3.10 does not know."""
    return [frame.scope.rpartition(".")[2] for frame in stack.frames]


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


def test_a_stack_is_whole_where_c_code_has_called_python(start: Start, interpreter: str) -> None:
    process = start(NESTED, interpreter)
    until_idle(process.pid)
    [stack] = look(process.pid)
    assert scopes(stack)[:6] == ["<module>", "<lambda>", "call", "__init__", "steps", "key"]
    assert stack.frames[5].scope == ("key" if "3.10" in interpreter else "Job.key")
    assert [frame.line for frame in stack.frames[:6]] == [14, 14, 12, 5, 7, 10]
    assert [frame.definition_line for frame in stack.frames[:6]] == [1, 14, 11, 4, 6, 8]
    assert {os.path.basename(frame.file) for frame in stack.frames[:6]} == {"target.py"}


def test_the_interpreter_s_own_frame_of_a_specialized_call_is_left_out(start: Start, interpreter: str) -> None:
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
            interpreter,
        ).pid
    )
    assert scopes(stack)[:3] == ["<module>", "make", "__init__"]


def test_names_and_files_are_read_in_every_alphabet(start: Start, interpreter: str) -> None:
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
    [stack] = look(start(source, interpreter).pid)
    named = [(frame.file, frame.scope) for frame in stack.frames if frame.scope in ("grün", "ждать", "待つ", "平")]
    assert named == [("😀.py", "平"), ("漢字.py", "待つ"), ("данные.py", "ждать"), ("käse.py", "grün")]


def test_every_interpreter_of_a_process_is_read(start: Start, interpreter: str) -> None:
    process = start(
        """
        import sys, threading
        try:
            import _interpreters
        except ImportError:
            import _xxsubinterpreters as _interpreters
        def run():
            inside = "def inside():\\n print('ready', flush=True)\\n import time\\n time.sleep(1000)\\ninside()"
            _interpreters.run_string(_interpreters.create(), inside)
        threading.Thread(target=run, daemon=True).start()
        sys.stdin.read()
        """,
        interpreter,
    )
    deadline = time.monotonic() + PATIENCE
    found: dict[str, int] = {}
    while not {"inside", "run", "<module>"} <= found.keys():
        assert time.monotonic() < deadline, found
        found = {scope: stack.interpreter for stack in look(process.pid) for scope in scopes(stack)[-1:]}
    assert found["inside"] != found["run"]


def test_a_collection_is_seen(start: Start, interpreter: str) -> None:
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
        interpreter,
    )
    [stack] = look(process.pid)
    assert scopes(stack)[:2] == ["<module>", "__del__"]
    assert stack.is_collecting


COMPILED_ANEW = """
    import sys
    print("ready", flush=True)
    for number in range(1000):
        scope = {"wait": lambda: sys.stdin.readline()}
        exec(f"def name_{number:03}():\\n wait()\\nname_{number:03}()", scope)
        print("left", flush=True)
"""


def test_code_that_is_compiled_anew_at_the_same_place_has_its_new_name(
    start: Start, interpreter: str, open_reader: Open
) -> None:
    """A code object that is freed leaves its address, and its frames' memory, to the next one."""
    process = start(COMPILED_ANEW, interpreter)
    assert process.stdin is not None
    assert process.stdout is not None
    reader, parser = open_reader(process.pid), MojoParser()
    names: list[str] = []
    for _ in range(50):
        until_idle(process.pid)
        stacks = look_again(reader, parser)
        names += [scope for stack in stacks for scope in scopes(stack) if scope.startswith("name_")]
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "left\n"
    assert names == sorted(set(names)), "no name comes twice, or late"
    assert len(names) > 25, "the reader may look between two of them"


def test_code_that_was_known_for_long_is_compared_each_tenth_of_a_second(
    start: Start, interpreter: str, open_reader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before CPython 3.14 nothing reports that a code object was freed."""
    process = start(
        """
        import sys
        print("ready", flush=True)
        def wait():
            print("waits", flush=True)
            sys.stdin.readline()
        for number in range(1000):
            scope = {"wait": wait}
            exec(f"def name_{number:03}():\\n wait()\\nname_{number:03}()", scope)
        """,
        interpreter,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reader, parser = open_reader(process.pid), MojoParser()
    now = 1000.0
    monkeypatch.setattr(
        "tornado_rbkit.profiler.external.stack_reader.reader.time", SimpleNamespace(monotonic=lambda: now)
    )

    def name() -> str:
        [stack] = look_again(reader, parser)
        return next(scope for scope in scopes(stack) if scope.startswith("name_"))

    for number in range(20):
        assert process.stdout.readline() == "waits\n"
        until_idle(process.pid)
        look_again(reader, parser)  # the names may be those of the code before
        now += 0.11
        assert name() == f"name_{number:03}"
        now += 100
        assert name() == f"name_{number:03}", "it is known for long now"
        process.stdin.write("\n")
        process.stdin.flush()


def test_it_ends_with_the_process_and_on_request(start: Start, interpreter: str) -> None:
    command = [sys.executable, "-I", "-S", os.path.dirname(stack_reader.__file__)]
    for end in ("process", "request", "reader"):
        process = start(NESTED, interpreter)
        with subprocess.Popen([*command, str(process.pid), "1000"], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            assert reader.stdout.read(4) == b"MOJ\x03"
            if end == "process":
                process.kill()
            elif end == "request":
                reader.send_signal(signal.SIGTERM)
            else:
                reader.stdout.close()
            assert reader.wait(PATIENCE) == (1 if end == "process" else 0)


def test_a_thread_that_sleeps_is_marked_with_the_cpu_clock(start: Start, interpreter: str) -> None:
    process = start(NESTED, interpreter)
    until_idle(process.pid)
    with closing(Clocks(f"/proc/{process.pid}/task")) as clocks:
        [stack] = look(process.pid, clocks)
    assert stack.is_idle
    assert stack.use is not None
    assert stack.use.seconds > 0


def test_a_thread_that_computes_is_found_on_a_processor(start: Start, interpreter: str) -> None:
    """On a busy machine it waits for one at most looks."""
    process = start("print('ready', flush=True)\nwhile True: pass", interpreter)
    deadline = time.monotonic() + PATIENCE
    parser = MojoParser()
    with closing(StackReader(process.pid)) as reader, closing(Clocks(f"/proc/{process.pid}/task")) as clocks:
        while True:
            [stack] = look_again(reader, parser, clocks)
            if stack.use is not None and stack.use.is_running:
                assert not stack.is_idle
                return
            assert time.monotonic() < deadline


class Bytes:
    """Memory from one address on; counts how often it is read."""

    BEGIN = 5000

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        at = address - self.BEGIN
        if at < 0 or at + size > len(self.data):
            raise ReadError
        return self.data[at : at + size]


@given(st.data(), st.lists(st.tuples(st.integers(0, 9999), st.integers(1, 2000)), max_size=20))
def test_memory_is_unchanged_if_each_part_that_was_read_is(data: st.DataObject, parts: list[tuple[int, int]]) -> None:
    """The parts may overlap; what lies between them may change."""
    memory = Bytes(bytes(12_000))
    contents = [(Bytes.BEGIN + at, bytes(size)) for at, size in parts]
    groups = joined(contents)
    assert is_unchanged(cast(Memory, memory), groups)
    at = data.draw(st.integers(0, 11_999))
    memory.data = bytes(at) + b"x" + bytes(11_999 - at)
    is_read = any(begin <= at < begin + size for begin, size in parts)
    assert is_unchanged(cast(Memory, memory), groups) == (not is_read)


def test_frames_that_lie_near_each_other_are_compared_at_once() -> None:
    memory = Bytes(bytes(50_000))
    groups = joined([(Bytes.BEGIN + 416 * frame, bytes(109)) for frame in range(100, 0, -1)])
    assert is_unchanged(cast(Memory, memory), groups)
    assert memory.reads == 1


def test_memory_that_was_returned_to_the_system_is_changed() -> None:
    assert not is_unchanged(cast(Memory, Bytes(bytes(50))), joined([(Bytes.BEGIN + 40, bytes(20))]))


AGREEMENT = """
    import json, sys
    class Name(str):
        pass
    def describe(frame):
        found = []
        while frame:
            code = frame.f_code
            name = getattr(code, "co_qualname", code.co_name)
            found.append([code.co_filename, name, frame.f_lineno or 0, code.co_firstlineno])
            frame = frame.f_back
        return json.dumps(found[::-1])
    def wait():
        print(describe(sys._getframe()), flush=True) or sys.stdin.readline()
    print("ready", flush=True)
    for line in sys.stdin:
        exec(compile(json.loads(line), Name("käse.py"), "exec"), {"wait": wait, "Name": Name})
        print("done", flush=True)
"""

SHAPES = (
    "return inner()",
    "return len([\n  1,\n\n  inner(),\n  3])",
    "def steps():\n  yield 1\n  inner()\n  yield 2\n return list(steps())",
    "def steps():\n  yield 1\n  inner()\n def all():\n  yield from steps()\n return list(all())",
    "return [inner()\n  for _ in range(1)\n  if True]",
    "return list(inner()\n  for _ in range(1))",
    "return (lambda:\n  inner())()",
    "class Body:\n  x = 1\n  y = inner()",
    "exec(compile('x = 1\\n\\ninner()', '漢字.py', 'exec'), {'inner': inner})",
    "return eval(compile('[inner()]', Name('😀.py'), 'eval'), {'inner': inner})",
    "return sorted([1], key=lambda _: inner() and 0 or 1)",
    "return next(map(lambda _:\n\n inner(), [1]))",
    "async def work():\n  async def more():\n   inner()\n  await more()\n try:\n  work().send(None)\n"
    " except StopIteration:\n  pass",
    "async def steps():\n  inner()\n  yield 1\n async def work():\n  return [x async for x in steps()]\n try:\n"
    "  work().send(None)\n except StopIteration:\n  pass",
    "class Thing:\n  def __init__(self):\n   inner()\n return Thing()",
    "class Thing:\n  def __enter__(self):\n   pass\n  def __exit__(self, *error):\n   inner()\n with Thing():\n  pass",
    "class Thing:\n  @property\n  def value(self):\n   return inner()\n return Thing().value",
    "class Thing:\n  def __del__(self):\n   inner()\n Thing()",
    "try:\n  raise ValueError\n except ValueError:\n  inner()",
    "try:\n  pass\n finally:\n  inner()",
    "for x in [1]:\n  while x:\n   inner(); break\n else:\n  pass",
    "x = 1\n" + "\n" * 300 + " inner()",
    " + ".join(["1"] * 300) + " + (inner() and 0 or 1)",
    "match 1:\n  case 1:\n   inner()",
    "def down(levels):\n  return down(levels - 1) if levels else inner()\n return down(50)",
)
NAMES = ("plain", "grün", "待つ", "ждать", "𐤀")


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Return a program of nested functions, the innermost of which waits."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), max_size=8))
    lines, inner = ["def last():\n wait()"], "last"
    for number, shape in enumerate(shapes):
        name = f"{draw(st.sampled_from(NAMES))}_{number}"
        lines.append("\n" * draw(st.integers(0, 3)) + f"def {name}(inner={inner}):\n {shape}")
        inner = name
    return "\n".join([*lines, f"{inner}()"])


def test_every_place_is_the_one_that_the_process_itself_reports(
    start: Start, interpreter: str, open_reader: Open
) -> None:
    """The code of each program is freed before the next one is compiled."""
    process = start(AGREEMENT, interpreter)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    reader, parser = open_reader(process.pid), MojoParser()

    @settings(max_examples=100, deadline=None)
    @given(programs())
    def agree(program: str) -> None:
        stdin.write(json.dumps(program) + "\n")
        stdin.flush()
        expected = [tuple(place) for place in json.loads(stdout.readline())]
        until_idle(process.pid)
        [stack] = look_again(reader, parser)
        places = [(frame.file, frame.scope, frame.line, frame.definition_line) for frame in stack.frames]
        assert places == expected
        stdin.write("\n")
        stdin.flush()
        assert stdout.readline() == "done\n"

    agree()


def outermost(pid: int, looks: int) -> list[set[str]]:
    """Return the outermost functions of the whole stacks of each look at a process that computes.

    It has computed between two looks: otherwise many may see the one state in which it waits for a processor.
    """
    parser = MojoParser()
    found = []
    clock = (~pid << 3) | 2  # of all its threads, see clock_getcpuclockid(3)
    with closing(StackReader(pid)) as reader:
        for _ in range(looks):
            before = time.clock_gettime_ns(clock)
            while time.clock_gettime_ns(clock) == before:
                os.sched_yield()
            reader.look(0)
            stacks = parser.feed(bytes(reader.output.data) + b"\x02\x00\x001\x00")
            reader.output.data.clear()
            found.append({scopes(stack)[0] for stack in stacks if stack.frames and not stack.is_broken})
    return found


def test_a_coroutine_that_is_just_left_is_not_taken_for_a_whole_stack(start: Start, interpreter: str) -> None:
    process = start(
        """
        import asyncio
        async def leaf():
            await asyncio.sleep(0)
            return sum(number for number in range(50))
        async def main():
            while True:
                await asyncio.gather(*(leaf() for _ in range(20)))
        print("ready", flush=True)
        asyncio.run(main())
        """,
        interpreter,
    )
    found = outermost(process.pid, 1000)
    assert sum("<module>" in each for each in found) > 500, "most looks find whole stacks"
    assert not any(each & {"leaf", "main", "<genexpr>", "sleep"} for each in found)


def test_a_thread_is_seen_in_nearly_every_look_while_others_come_and_go(start: Start, interpreter: str) -> None:
    process = start(
        """
        import _thread, threading
        def burn():
            print("ready", flush=True)
            while True:
                pass
        _thread.start_new_thread(burn, ())
        while True:
            threading.Thread(target=sum, args=(range(1000),)).start()
        """,
        interpreter,
    )
    found = outermost(process.pid, 500)
    assert sum({"<module>", "burn"} <= each for each in found) > 450


def test_a_stack_that_is_too_deep_is_read_from_its_inner_end(start: Start, interpreter: str) -> None:
    process = start(
        """
        import sys
        sys.setrecursionlimit(10_000)
        def down(levels):
            if levels:
                return down(levels - 1)
            print("ready", flush=True)
            sys.stdin.read()
        down(5000)
        """,
        interpreter,
    )
    until_idle(process.pid)
    [stack] = look(process.pid)
    assert [frame.line for frame in stack.frames] == [6] * (MAX_DEPTH - 1) + [8]


def test_threads_have_the_system_s_identifiers(start: Start, interpreter: str) -> None:
    process = start(
        """
        import sys, threading
        named = {}
        def wait(name):
            scope = {"wait": lambda: sys.stdin.read()}
            exec(f"def {name}(): wait()", scope)
            named[name] = threading.get_native_id()
            if len(named) == 4:
                print("ready", flush=True)
                print(named, flush=True)
            scope[name]()
        for name in ("one", "two", "three"):
            threading.Thread(target=wait, args=(name,), daemon=True).start()
        wait("main")
        """,
        interpreter,
    )
    assert process.stdout is not None
    named = ast.literal_eval(process.stdout.readline())
    deadline = time.monotonic() + PATIENCE
    found: dict[str, int] = {}
    while not named.keys() <= found.keys():
        assert time.monotonic() < deadline, found
        found = {scope: stack.thread_id for stack in look(process.pid) for scope in scopes(stack)}
    assert {name: found[name] for name in named} == named


def test_a_process_in_a_pid_namespace_of_its_own_is_read(start: Start, interpreter: str) -> None:
    """In a container its threads have other identifiers."""
    try:
        subprocess.run(["unshare", "--pid", "--fork", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system does not let the tests make a PID namespace")
    script = """
import threading, time
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print(threading.get_native_id(), flush=True)
input()
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", interpreter, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        found = {stack.thread_id: scopes(stack)[0] for stack in look(pid)}
        assert found.keys() == {int(name) for name in os.listdir(f"/proc/{pid}/task")}
        assert found[pid] == "<module>"
        process.kill()


def test_a_program_whose_files_are_deleted_is_read(start: Start, interpreter: str, tmp_path: Path) -> None:
    """An update of the system replaces the interpreter of a running program."""
    script = "import sys, sysconfig; print(sys._base_executable, sys.base_prefix, sysconfig.get_config_var('LIBDIR'))"
    found = subprocess.run([interpreter, "-I", "-c", script], capture_output=True, text=True, check=True).stdout
    executable, prefix, libraries = found.split()
    for file in (executable, *glob(f"{libraries}/libpython3.*.so.1.0")):
        shutil.copy(file, tmp_path)
    copy = tmp_path / os.path.basename(executable)
    variables = {"PYTHONHOME": prefix, "LD_LIBRARY_PATH": str(tmp_path)}
    with subprocess.Popen(
        [copy, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for each in tmp_path.iterdir():
            each.unlink()
        [stack] = look(process.pid)
        assert scopes(stack) == ["<module>"]
        process.kill()


def test_symbols_are_where_the_linker_has_put_them() -> None:
    memory = Memory(os.getpid())
    found = symbols.images(memory)
    for name in (
        "Py_IncRef",
        "PyObject_Repr",
        "Py_Version" if sys.version_info >= (3, 11) else "_PyRuntime",
        "lfind",  # no function whose address an executable at a fixed place may take, and so have for itself
    ):
        true = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        assert true in [image.find(name) for image in found], name
    assert [image.find("Py_NoSuchSymbol") for image in found] == [None] * len(found)
    memory.close()


def test_glibc_reports_where_a_thread_has_its_identifier() -> None:
    memory = Memory(os.getpid())
    known = layouts._THREAD_IDS.get(os.uname().machine)
    assert layouts._thread_id(memory, symbols.images(memory)) == known or known is None
    memory.close()


def refused(table: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return why a process with a table is refused."""
    monkeypatch.setattr(layouts, "find_runtime", lambda memory: (0, struct.unpack_from("<I", table, 8)[0], []))
    monkeypatch.setattr(Memory, "read", lambda _, address, size: table[address : address + size])
    with pytest.raises(ReadError) as caught:
        StackReader(os.getpid())
    return str(caught.value)


def test_what_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def table(version: int, *words: int) -> bytes:
        return COOKIE + struct.pack("<128Q", version, *words, *[0] * (127 - len(words)))

    assert refused(table(0x031000F0), monkeypatch) == "it runs CPython 3.16.0; known: 3.10 to 3.15"
    assert refused(table(0), monkeypatch) == "it runs a CPython before 3.10; known: 3.10 to 3.15"
    assert "without a GIL" in refused(table(0x030E00F0, 1), monkeypatch)
    backwards = table(0x030E00F0, 0, *range(100, 0, -1))
    assert refused(backwards, monkeypatch) == "its structures are not those of CPython 3.14"


@pytest.mark.parametrize("field", ["interpreter.gc", "thread.interpreter", "thread.native_id"])
def test_structures_that_are_not_as_expected_are_refused(
    start: Start, interpreter: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distributor may have added a field, which moves the others."""
    process = start(NESTED, interpreter)
    version = python_version(process.pid)
    if field != "thread.interpreter" and version is not None and version >= 0x030D0000:
        return  # the process itself reports this offset; threads have a second identifier
    read = layouts.Layout._offsets

    def moved(self: layouts.Layout, address: int) -> dict[str, int]:
        return {name: at + 8 * (name == field) for name, at in read(self, address).items()}

    monkeypatch.setattr(layouts.Layout, "_offsets", moved)
    with pytest.raises(ReadError, match=r"its structures are not those of CPython 3\.1\d"):
        StackReader(process.pid)


def test_a_process_none_of_whose_stacks_can_be_read_is_refused(
    start: Start, interpreter: str, open_reader: Open
) -> None:
    process = start(NESTED, interpreter)
    until_idle(process.pid)
    look_once(open_reader(process.pid))
    reader = open_reader(process.pid)
    reader._layout.at["object.type"] += 16
    with pytest.raises(ReadError, match="its stacks cannot be read"):
        look_once(reader)


def test_the_version_of_a_process_is_found(start: Start, interpreter: str) -> None:
    script = "import sys; print(sys.hexversion if sys.version_info >= (3, 11) else 0x030A0000)"
    true = subprocess.run([interpreter, "-c", script], capture_output=True, text=True, check=True).stdout
    assert python_version(start(NESTED, interpreter).pid) == int(true)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert python_version(process.pid) is None
        finally:
            process.kill()


def test_a_program_without_dynamic_symbols_is_found_by_its_table(
    start: Start, interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython has this table from 3.13 on."""
    memory = Memory(start(NESTED, interpreter).pid)
    by_symbol = layouts.find_runtime(memory)
    monkeypatch.setattr(layouts, "images", lambda memory: [])
    by_table = layouts.find_runtime(memory)
    memory.close()
    assert by_symbol is not None
    assert (by_table and by_table[:2]) == (by_symbol[:2] if by_symbol[1] >= 0x030D0000 else None)


def compiled(count: int) -> Callable[..., object]:
    """Return a function whose lines are far apart, and on which some instructions have no line."""
    body = "".join("\n" * (7 * number) + f"    x = [y for y in range({number}) if y]\n" for number in range(count))
    scope: dict[str, Callable[..., object]] = {}
    exec(f"def function():\n    try:\n        pass\n    finally:\n        pass\n{body}", scope)
    return scope["function"]


@given(st.integers(0, 40))
def test_lines_are_those_of_the_code(count: int) -> None:
    code = compiled(count).__code__
    lines = Lines(code.co_linetable, code.co_firstlineno, locations if sys.version_info >= (3, 11) else deltas)
    for begin, end, line in code.co_lines():
        assert {lines.line(offset) for offset in range(begin, end, 2)} <= {line or 0}
    assert lines.line(len(code.co_code) + 2) == 0
    assert lines.line(-2) == code.co_firstlineno, "a function that has not yet begun"


@given(st.integers(0, (1 << 63) - 1))
def test_integers_are_those_of_the_format(value: int) -> None:
    assert integer(output.integer(value)) == value


def test_threads_of_a_process_that_c_code_has_forked_have_their_identifiers(start: Start, interpreter: str) -> None:
    """As the workers of uWSGI; Python knows nothing of the fork. The thread that is started later has its own."""
    parent = start(
        """
        import ctypes, os, sys, threading

        def wait():
            sys.stdin.read()

        if ctypes.CDLL(None).fork() == 0:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            sys.stdout.write("ready\\n%d\\n" % os.getpid())
            sys.stdout.flush()
            wait()
            os._exit(0)
        os.wait()
        """,
        interpreter,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until_idle(child)
    found = {stack.thread_id: scopes(stack) for stack in look(child)}
    assert found.keys() == {int(name) for name in os.listdir(f"/proc/{child}/task")}
    assert found[child][-1] == "wait"


@pytest.mark.parametrize("error", [PermissionError, ValueError])
def test_a_reader_that_is_refused_real_time_priority_asks_for_short_slices(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    found = {}

    def run() -> None:
        """Change this thread only."""
        before = slice_of_thread()
        sampling._come_first()
        found["before"], found["after"] = before, slice_of_thread()
        found["policy"] = os.sched_getscheduler(0)
        found["niceness"] = os.getpriority(os.PRIO_PROCESS, 0)

    monkeypatch.setattr(sampling, "resource", SimpleNamespace(setrlimit=refuse, RLIMIT_RTTIME=resource.RLIMIT_RTTIME))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found["policy"] == os.SCHED_OTHER
    assert found["niceness"] == os.getpriority(os.PRIO_PROCESS, 0)
    has_slices = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12)
    assert found["after"] == (100_000 if has_slices and found["before"] else found["before"])


def slice_of_thread() -> int | None:
    """Return the slice of the calling thread in nanoseconds, None if the system does not tell it."""
    text = Path("/proc/thread-self/sched").read_text() if os.path.exists("/proc/thread-self/sched") else ""
    found = re.search(r"se\.slice +: +(\d+)", text)
    return int(found[1]) if found else None
