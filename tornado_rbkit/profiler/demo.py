"""The process that ``tornado-rbkit demo`` profiles: the demo workload with a profiler, until standard input ends."""

from __future__ import annotations

import json
import sys
import threading

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.lifecycle import start_profiling, stop_server
from tornado_rbkit.profiler.workload import run


def main() -> None:
    """Print the server's endpoints as a line of JSON, and run the workload until standard input ends."""
    try:
        server = start_profiling(
            name="demo",
            enable_cpu_profiling=True,
            clock_type="cpu" if sys.platform == "linux" else "wall",  # its threads wait most of the time
            cpu_sampling_interval=0.002,
        )
    except RbkitError as error:
        sys.exit(f"tornado-rbkit: {error}")
    print(json.dumps({"pub": server.pub, "req": server.req}), flush=True)
    stop = threading.Event()
    shop = threading.Thread(target=run, args=(stop,), name="shop")
    shop.start()
    sys.stdin.read()
    stop.set()
    shop.join()
    stop_server()


if __name__ == "__main__":
    main()
