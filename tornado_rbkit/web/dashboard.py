"""The handlers of the dashboard: its page, the page that asks for a token, and the assets."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tornado.template import Template
from tornado.web import HTTPError, StaticFileHandler

import tornado_rbkit.dashboard
from tornado_rbkit.web.access import Access, AccessDeniedError, AccessHandler
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
"""The policy of the page; `Access.frame_ancestors` is appended to it."""


class IndexHandler(PageHandler):
    """The dashboard's page. Its scripts, WebSocket and JSON have paths relative to it.

    Attributes:
        login_kept_in: where the token of the page's address is kept for a reload, so that the page may remove it from
            the address: "tab", "cookie", or "" if it must stay.
        how_to_start: the sentence that tells a user without a profiler how to start one.
    """

    how_to_start = "Start one in a Python process with profiler.start_server(), in a notebook with %rbkit start."

    @property
    def login_kept_in(self) -> str:
        """See the class."""
        return "tab" if self.access.token is not None else ""

    def script_query(self) -> str:
        """Return the query for the page's scripts and requests; it may contain a token."""
        return self.request.query

    async def get(self) -> None:
        """Answer with the page."""
        if not self.request.path.endswith("/"):
            query = "?" + self.request.query if self.request.query else ""
            self.redirect(self.request.path.rpartition("/")[2] + "/" + query)
            return
        await self.check_request()
        if not (_STATIC / "app.js").exists():
            raise AccessDeniedError(503, "the dashboard was not built; `pip install -e .` in the checkout builds it")
        self._begin(CONTENT_SECURITY_POLICY)
        commands = " ".join(sorted(self.access.page_commands))
        query = self.script_query()
        self.finish(
            _PAGE.generate(
                query="?" + query if query else "",
                commands=commands,
                listed=self.listed,
                login_kept_in=self.login_kept_in,
                how_to_start=self.how_to_start,
            )
        )

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer a browser without the right token with a page that uses the tab's stored token or asks for one."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if status_code != 401 or "text/html" not in self.request.headers.get("Accept", ""):
            super().write_error(status_code, **kwargs)
            return
        self._begin(_LOCKED_POLICY)
        text = error.text if isinstance(error, AccessDeniedError) else self._reason
        self.finish(_LOCKED.generate(text=text, script=_LOCKED_SCRIPT))

    def _begin(self, policy: str) -> None:
        """Set a page's headers; add its policy to the application's, whose frame-ancestors take precedence."""
        self.begin("text/html; charset=UTF-8")
        policies = self._headers.get_list("Content-Security-Policy")
        ancestors = self.access.frame_ancestors
        if ancestors is None or any("frame-ancestors" in each.lower() for each in policies):
            self.add_header("Content-Security-Policy", policy)
        else:
            self.add_header("Content-Security-Policy", f"{policy}; frame-ancestors {ancestors}")


class AssetHandler(AccessHandler, StaticFileHandler):
    """The page's scripts and styles, for clients that may view the page."""

    def initialize(self, access: Access | None = None) -> None:  # type: ignore[override]
        """Set the access rules."""
        super().initialize(str(_STATIC))
        self.access = access or Access()

    async def get(self, path: str, include_body: bool = True) -> None:
        """Answer with a file, which browsers revalidate each time."""
        await self.check_request()
        if not re.fullmatch(r"[\w.-]+", path):  # StaticFileHandler raises for names that no file can have
            raise HTTPError(404)
        try:
            await super().get(path, include_body)
        except OSError as error:
            raise HTTPError(503, f"{path} cannot be read: {error.strerror}") from error

    def set_extra_headers(self, path: str) -> None:
        """Make browsers revalidate, so that they load a new version's files at once."""
        self.set_header("Cache-Control", "no-cache")
