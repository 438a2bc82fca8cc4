"""A real JupyterHub with its proxy as processes, in a folder of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.chromium.webdriver import ChromiumDriver

from tests.fake_rbkit import free_port
from tests.jupyter.lab import PATIENCE, PATIENT_OPTIONS, JupyterProcess, click, environment, find

CONFIGURATION = """
c = get_config()
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {homes!r} + "/{{username}}"
c.Spawner.cmd = [{python!r}, "-m", "jupyterhub.singleuser"]
c.Spawner.args = {arguments!r}
c.Spawner.environment = {{
    **{variables!r},
    "RBKIT_RUNTIME_DIR": lambda spawner: {homes!r} + "/" + spawner.user.name + "/rbkit",
    "JUPYTER_RUNTIME_DIR": lambda spawner: {runtime!r} + "/" + spawner.user.name,
}}
c.Spawner.start_timeout = c.Spawner.http_timeout = {patience!r}
c.JupyterHub.bind_url = "http://127.0.0.1:{port}/"
c.JupyterHub.hub_port = {hub_port}
c.ConfigurableHTTPProxy.command = [{proxy!r}]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"


def allow_frames(spawner):
    if spawner.user.name == {framed!r}:
        spawner.args = [*spawner.args, {policy!r}]


c.Spawner.pre_spawn_hook = allow_frames
"""

FRAMED = "ben"
"""The user whose server may show its pages in frames; JupyterHub forbids it to others."""

_POLICY = '--ServerApp.tornado_settings={"headers": {"Content-Security-Policy": "frame-ancestors \'self\'"}}'


class Hub(JupyterProcess):
    """A JupyterHub; `log` has the output of its users' servers too."""

    def __init__(self, folder: Path, proxy: str) -> None:
        self._homes = folder / "homes"
        own = environment(folder)
        runtime = own.pop("JUPYTER_RUNTIME_DIR")
        for private in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "XDG_RUNTIME_DIR"):
            del own[private]  # each user's are below the home
        variables = {name: value for name, value in own.items() if name.startswith("JUPYTER_")}
        port = free_port()
        text = CONFIGURATION.format(
            homes=str(self._homes),
            runtime=runtime,
            arguments=["--allow-root", "--LabApp.expose_app_in_browser=True", *PATIENT_OPTIONS],
            python=sys.executable,
            framed=FRAMED,
            policy=_POLICY,
            variables=variables,
            patience=PATIENCE,
            port=port,
            hub_port=free_port(),
            api_port=free_port(),
            proxy=proxy,
        )
        (folder / "jupyterhub_config.py").write_text(text)
        command = [sys.executable, "-m", "jupyterhub", "-f", str(folder / "jupyterhub_config.py")]
        super().__init__(command, f"http://127.0.0.1:{port}/", folder / "log", folder, own)

    def home(self, user: str) -> Path:
        """Return the home of a user, where the notebooks are."""
        return self._homes / user

    def log_in(self, browser: ChromiumDriver, user: str) -> str:
        """Log in with the form, as a person does, and return the address of the user's running server."""
        browser.get("about:blank")  # the page of another user asks on, and would be refused without the cookies
        browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
        browser.get(f"{self.url}hub/login")
        find(browser, "#username_input").send_keys(user)
        find(browser, "#password_input").send_keys("secret")
        click(browser, "#login_submit")
        find(browser, ".jp-LauncherCard, #jp-main-dock-panel")
        return f"{self.url}user/{user}/"

    def ask(self) -> None:
        with urllib.request.urlopen(f"{self.url}hub/api/", timeout=PATIENCE):
            pass


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """A JupyterHub; skips the test where it is not installed."""
    if importlib.util.find_spec("jupyterhub") is None:
        pytest.skip("there is no JupyterHub: pip install jupyterhub")
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    proxy = shutil.which("configurable-http-proxy", path=beside)
    if proxy is None:
        pytest.skip(
            f"there is no configurable-http-proxy: npm install -g --prefix {sys.prefix} configurable-http-proxy@4"
        )
    server = Hub(folder, proxy)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
