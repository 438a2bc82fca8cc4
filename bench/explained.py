"""Measures the share of a process's memory that the sizes of the objects in a heap snapshot add up to: of its resident
memory, and of that without mapped files, which are the interpreter's and libraries' own (smaps_rollup; Linux).

    pip install -e '.[bench]' pandas
    python bench/explained.py

Each program runs in a fresh process and takes the snapshot on another thread. Memory that no object has is not
explained: mapped files, what extensions and the interpreter allocate without objects, and what the allocators keep
free. The row *nothing* has little else.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import msgpack
from measure import table

from tornado_rbkit.profiler.heap import Snapshot
from tornado_rbkit.profiler.vitals import MappedMemory
from tornado_rbkit.protocol import Field

_WEB: Final = (
    "tornado.web",
    "tornado.httpclient",
    "asyncio",
    "sqlite3",
    "email.mime.text",
    "http.server",
    "xmlrpc.client",
)


class Order:
    def __init__(self, number: int) -> None:
        self.number = number
        self.customer = f"customer {number}"
        self.lines = [number]
        self.paid = None


def json_rows() -> Any:
    return json.loads(json.dumps([{"id": n, "name": f"row {n}", "price": n / 7} for n in range(200_000)]))


def numpy_arrays() -> Any:
    import numpy

    return [numpy.ones(1_000_000)[::2] for _ in range(10)]


def pandas_text() -> Any:
    import pandas

    return pandas.DataFrame({"text": [f"a text of its own {number}" for number in range(500_000)]})


def frozen() -> Any:
    made = [Order(number) for number in range(200_000)]
    gc.freeze()
    return made


PROGRAMS: Final[dict[str, Callable[[], Any]]] = {
    "nothing": lambda: None,
    "JSON rows": json_rows,
    "instances": lambda: [Order(number) for number in range(200_000)],
    "numpy, views of arrays": numpy_arrays,
    "pandas, a text column": pandas_text,
    "web imports": lambda: [importlib.import_module(name) for name in _WEB],
    "bytes in a running function's variable": lambda: b"x" * 60_000_000,
    "instances after gc.freeze()": frozen,
}


def measure(program: str) -> None:
    """Hold what the program made in a variable of this function, and print the bytes."""
    made = PROGRAMS[program]()
    facts: dict[str, int] = {}

    def take() -> None:
        mapped = MappedMemory(os.getpid()).read()
        snapshot = Snapshot(1, [])
        for _ in snapshot.walk():
            pass
        facts.update(resident=0, explained=0, anonymous=mapped["process_anonymous"])
        for events in snapshot.messages():
            for event in events:
                dump = msgpack.unpackb(event, strict_map_key=False)
                facts["resident"] = dump[int(Field.RESIDENT)]
                facts["explained"] += sum(row[int(Field.SIZE)] or 0 for row in dump[2])

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    print(json.dumps(facts))
    del made


def main() -> None:
    """Measure and print."""
    rows = []
    for program in PROGRAMS:
        ended = subprocess.run([sys.executable, __file__, program], capture_output=True, text=True, check=False)
        if ended.returncode:
            rows.append([program, "", "", "", "", ended.stderr.strip().splitlines()[-1]])
            continue
        facts = json.loads(ended.stdout)
        shares = [f"{100 * facts['explained'] / facts[key]:.0f} %" for key in ("resident", "anonymous")]
        sizes = [f"{facts[key] / 2**20:.0f} MB" for key in ("resident", "anonymous", "explained")]
        rows.append([program, *sizes, *shares])
    print(f"Python {sys.version.split()[0]}\n")
    print(table(("program", "resident", "without files", "explained", "share", "share without files"), rows))


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
