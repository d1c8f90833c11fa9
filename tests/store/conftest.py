"""A small finished store, one instance of which failed."""

from pathlib import Path

import pytest
from toy_store import Content, make_content


@pytest.fixture
def content() -> Content:
    return make_content(failed=(5,))


@pytest.fixture
def store(content: Content, tmp_path: Path) -> Path:
    return content.write(tmp_path / "geo")
