"""Real files where there are some, and never the network."""

import os
from pathlib import Path

import pytest

from saccade.data import _download


@pytest.fixture
def real_root() -> Path:
    """The folder of real datasets; absent on a laptop it is no matter, absent in CI it is."""
    root = os.environ.get("SACCADE_DATA")
    if not root:
        if os.environ.get("CI") == "true":
            pytest.fail("SACCADE_DATA is not set: CI must read the real files")
        pytest.skip("SACCADE_DATA is not set: no real files to read")
    return Path(root)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise OSError("the network is down")

    monkeypatch.setattr(_download, "_open", fail)
