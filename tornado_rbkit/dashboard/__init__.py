"""The dashboard: a page that shows a profiled process in the browser. Its scripts are bundled when the package is
built, and talk to the WebSocket beside it; they ask nothing of any other server.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tornado.template import Template
from tornado.web import HTTPError, StaticFileHandler

from tornado_rbkit.access import Access, AccessHandler, Refusal
from tornado_rbkit.pages import PageHandler

_HERE: Final = Path(__file__).parent
_STATIC: Final = _HERE / "static"
_PAGE: Final = Template((_HERE / "page.html").read_text(encoding="utf-8"))

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
        self.begin("text/html; charset=UTF-8")
        self._add_policy()
        commands = " ".join(sorted(self.access.page_commands))
        await self.finish(_PAGE.generate(query=query, commands=commands, listed=self.listed))

    def _add_policy(self) -> None:
        """Add the page's policy to those of the application, whose frame-ancestors, if any, are not narrowed."""
        policies = self._headers.get_list("Content-Security-Policy")
        ancestors = self.access.frame_ancestors
        if ancestors is None or any("frame-ancestors" in policy.lower() for policy in policies):
            self.add_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        else:
            self.add_header("Content-Security-Policy", f"{CONTENT_SECURITY_POLICY}; frame-ancestors {ancestors}")


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
