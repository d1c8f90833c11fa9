"""yapf's grammars, half written by another process when they are read."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from sagecache.mm.first_import import import_patiently


def test_a_pickle_that_another_process_still_writes_is_waited_for(tmp_path):
    environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path))
    subprocess.run([sys.executable, "-c", "import yapf"], env=environment, check=True)
    (grammar,) = tmp_path.rglob("Grammar-*.pickle")
    whole = grammar.read_bytes()
    grammar.write_bytes(whole[: len(whole) // 2])
    alone = subprocess.run([sys.executable, "-c", "import yapf"], env=environment, stderr=subprocess.PIPE)
    assert b"EOFError" in alone.stderr or b"UnpicklingError" in alone.stderr  # what it is all about
    waiting = subprocess.Popen([sys.executable, "-c", "import sagecache.mm.compat"], env=environment)
    time.sleep(0.5)
    grammar.write_bytes(whole)
    assert waiting.wait(60) == 0


def test_what_does_not_pass_is_raised(tmp_path, monkeypatch):
    (tmp_path / "always_half.py").write_text("raise EOFError('Ran out of input')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EOFError):
        import_patiently("always_half", patience=0.1)
    with pytest.raises(ModuleNotFoundError):
        import_patiently("not_there_at_all")
