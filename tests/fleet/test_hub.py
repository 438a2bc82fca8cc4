"""The keys and the configuration of a hub."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tornado_rbkit.fleet import hub as hubs
from tornado_rbkit.fleet.hub import Hub, HubError
from tornado_rbkit.fleet.server import locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no lock on Windows")


def test_hosts_that_are_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    Hub(tmp_path / "hub").add("host", "first", tmp_path / "first.creds")  # makes the authority
    names = [f"web-{number}" for number in range(12)]

    def add(name: str) -> None:
        Hub(tmp_path / "hub").add("host", name, tmp_path / f"{name}.creds")

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(add, names))
    assert sorted(json.loads((tmp_path / "hub" / "users.json").read_text())) == sorted(["first", *names])


def test_a_hub_that_is_in_use_for_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "_LOCK_TIMEOUT", 0.0)
    hub = Hub(tmp_path / "hub")
    with locked(hub.folder, "lock") as is_alone:
        assert is_alone
        with pytest.raises(HubError, match="is in use by another process"):
            hub.add("host", "web-1", tmp_path / "web-1.creds")
    hub.add("host", "web-1", tmp_path / "web-1.creds")
