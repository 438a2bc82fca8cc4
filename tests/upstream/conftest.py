"""Fixtures for the tests of an upstream."""

from __future__ import annotations

import pytest

from tests.upstream.pacing import make_small


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches, slices and fragments small, so that little data fills them."""
    make_small(monkeypatch)
