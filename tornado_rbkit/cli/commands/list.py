"""``list``: the profiled Python processes of this user."""

from __future__ import annotations

import argparse
import time

from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.output import one_line, say
from tornado_rbkit.profiler import list_servers
from tornado_rbkit.profiler.folder import DIRECTORY_VARIABLE, check_chosen_folder, runtime_folder


def _run(options: argparse.Namespace) -> int:
    check_chosen_folder()
    servers = list_servers()
    if not servers:
        where = f"{runtime_folder()} ({DIRECTORY_VARIABLE}, else XDG_RUNTIME_DIR, else the folder for temporary files)"
        say(f"there is no process with a profiler in {where}")
    for server in servers:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(server.started))
        print(f"{one_line(server.name)}\t{server.pid}\t{server.pub}\t{server.req}\t{started}")
    return 0


COMMAND = Command(
    name="list",
    help="list the Python processes of this user that have a profiler",
    example="tornado-rbkit list | cut -f 1,2   # name and pid; then the two endpoints and the time of the start",
    add_options=lambda parser: None,
    run=_run,
)
