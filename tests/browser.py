"""A real browser for tests of pages: it opens a file without a window and says what its console saw.

Any Chromium serves: Debian's `chromium-headless-shell` or `chromium`, Chrome, or another one that
$SAGECACHE_BROWSER names. `make browser` installs one where that is possible.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
MISSING = "no Chromium on PATH to open the page in: make browser, or name one in SAGECACHE_BROWSER"
_CONSOLE = re.compile(r":CONSOLE[:(]\d+\)?\] (.*)")


@dataclass(frozen=True)
class Opened:
    """dom: the page as its scripts left it. console: every message, and errors that nothing caught."""

    dom: str
    console: list[str]


def find_browser() -> str | None:
    named = os.environ.get("SAGECACHE_BROWSER")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


def open_page(page: Path, folder: Path, *flags: str) -> Opened:
    """Open page with a fresh profile below folder. The sandbox is off: root can't have it in a container."""
    command = [
        find_browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        "--hide-scrollbars",
        "--window-size=1280,900",
        *flags,
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Opened(done.stdout, _CONSOLE.findall(done.stderr))
