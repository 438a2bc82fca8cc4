"""The handlers of the dashboard: its page, which is open to clients without a token too, and its assets."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tornado.template import Template
from tornado.web import HTTPError, StaticFileHandler

import tornado_rbkit.dashboard
from tornado_rbkit.web.access import Access, AccessHandler, Refusal
from tornado_rbkit.web.pages import PageHandler

_HERE: Final = Path(tornado_rbkit.dashboard.__file__).parent
_STATIC: Final = _HERE / "static"
_PAGE: Final = Template((_HERE / "page.html").read_text(encoding="utf-8"))

_LOCKED: Final = Template((_HERE / "locked.html").read_text(encoding="utf-8"))
_LOCKED_SCRIPT: Final = (_HERE / "locked.js").read_text(encoding="utf-8")
_LOCKED_POLICY: Final = (
    f"default-src 'none'; script-src 'sha256-{b64encode(sha256(_LOCKED_SCRIPT.encode()).digest()).decode()}'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
"""The page's own; `Access.frame_ancestors` is added to it."""


class IndexHandler(PageHandler):
    """The page; its scripts, the WebSocket and the JSON are found at paths relative to it."""

    async def get(self) -> None:
        """Answer with the page, which carries the query on to its scripts: there may be a token in it."""
        query = "?" + self.request.query if self.request.query else ""
        if not self.request.path.endswith("/"):
            self.redirect(self.request.path.rpartition("/")[2] + "/" + query)
            return
        await self.check_request()
        if not (_STATIC / "app.js").exists():
            raise Refusal(503, "the dashboard was not built; `pip install -e .` in the checkout builds it")
        self._begin(CONTENT_SECURITY_POLICY)
        commands = " ".join(sorted(self.access.page_commands))
        locked = self.access.token is not None
        await self.finish(_PAGE.generate(query=query, commands=commands, listed=self.listed, locked=locked))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Let a browser without the right token open the page with the token that its tab has kept, or ask for one."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if status_code != 401 or "text/html" not in self.request.headers.get("Accept", ""):
            super().write_error(status_code, **kwargs)
            return
        self._begin(_LOCKED_POLICY)
        text = error.text if isinstance(error, Refusal) else self._reason
        self.finish(_LOCKED.generate(text=text, script=_LOCKED_SCRIPT))

    def _begin(self, policy: str) -> None:
        """Begin a page; add its policy to the application's, whose frame-ancestors, if any, are not narrowed."""
        self.begin("text/html; charset=UTF-8")
        policies = self._headers.get_list("Content-Security-Policy")
        ancestors = self.access.frame_ancestors
        if ancestors is None or any("frame-ancestors" in each.lower() for each in policies):
            self.add_header("Content-Security-Policy", policy)
        else:
            self.add_header("Content-Security-Policy", f"{policy}; frame-ancestors {ancestors}")


class AssetHandler(AccessHandler, StaticFileHandler):
    """The page's scripts and styles, for those who may see the page."""

    def initialize(self, access: Access | None = None) -> None:  # type: ignore[override]
        """Take what the route gives: who may see them."""
        super().initialize(str(_STATIC))
        self.access = access or Access()

    async def get(self, path: str, include_body: bool = True) -> None:
        """Answer with a file; the browser asks each time whether it has changed."""
        await self.check_request()
        if not re.fullmatch(r"[\w.-]+", path):  # StaticFileHandler raises for what no file can be called
            raise HTTPError(404)
        try:
            await super().get(path, include_body)
        except OSError as error:
            raise HTTPError(503, f"{path} cannot be read: {error.strerror}") from error

    def set_extra_headers(self, path: str) -> None:
        """Have the files that a new version brings taken at once."""
        self.set_header("Cache-Control", "no-cache")
