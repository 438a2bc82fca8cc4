"""Take the README's picture of a real notebook again: python -m tests.jupyter.picture"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.browser import open_browser
from tests.jupyter.lab import RUN_ALL, TOKEN, find, lab, write_notebook

PICTURE = Path(__file__).parents[2] / "tornado_rbkit" / "jupyter" / "notebook.png"

CELLS = [
    "%load_ext tornado_rbkit\n%rbkit start",
    """%%rbkit
import json, random

def score(record):
    return sum(value ** 0.5 for value in record["values"])

records = [{"id": i, "values": random.sample(range(1000), 50)} for i in range(20_000)]
lines = [json.dumps(record) for record in records]
max((json.loads(line) for line in lines), key=score)["id"]""",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            lab(folder / "lab", "--LabApp.expose_app_in_browser=True") as server,
            open_browser(folder / "c") as browser,
        ):
            write_notebook(server.root / "Scores.ipynb", CELLS)
            browser.set_window_size(1000, 1120)
            browser.get(f"{server.url}doc/tree/Scores.ipynb?token={TOKEN}")
            find(browser, ".jp-Notebook .jp-CodeCell")
            browser.execute_async_script(RUN_ALL)
            find(browser, ".rbkit-flames label")
            browser.execute_script("document.querySelector('.Toastify')?.remove()")  # whether one wants news
            find(browser, ".jp-Notebook").screenshot(str(PICTURE))


if __name__ == "__main__":
    main()
