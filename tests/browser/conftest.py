"""One browser and one JupyterLab for all browser tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

sys.path.insert(0, str(Path(__file__).parent))

import lab  # noqa: E402


@pytest.fixture(scope="session")
def opened() -> Iterator[Browser]:
    """A headless browser."""
    with lab.browser() as found:
        yield found


@pytest.fixture(scope="session")
def address(tmp_path_factory) -> Iterator[str]:
    """Where JupyterLab serves copies of the notebooks that these tests open."""
    with lab.server(tmp_path_factory.mktemp("lab"), lab.OPENED) as found:
        yield found
