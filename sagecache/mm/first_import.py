"""An import that survives other processes doing the same for the first time."""

from __future__ import annotations

import importlib
import pickle
import time

PATIENCE = 10.0  # seconds


def import_patiently(name: str, patience: float = PATIENCE) -> None:
    """Import a module that keeps pickles in the user's cache and writes them in place.

    yapf does so with its grammars when it is first imported after an installation. A second process that
    imports it meanwhile, of torchrun or of a test suite, finds half a pickle. Raises what the import raises
    where that does not pass.
    """
    until = time.monotonic() + patience
    while True:
        try:
            importlib.import_module(name)
            return
        except (EOFError, pickle.UnpicklingError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
