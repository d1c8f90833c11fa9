"""``KEY=VALUE`` words of the command line as dotted overrides, in mmengine's notation."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from sagecache.errors import SagecacheError


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """['a.b=1', 'c=[1,2]'] -> {'a.b': 1, 'c': [1, 2]}.

    Values are Python literals (numbers, True, None, lists, tuples); anything else is a string. A dict is
    refused: mmengine would turn it into a string; set its leaves. Raises SagecacheError.
    """
    overrides: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise SagecacheError(
                f"'{word}' is no KEY=VALUE",
                file="--cfg-options",
                fix="Write for example train_cfg.max_iters=50.",
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if isinstance(value, (dict, set)) or text.startswith(("dict(", "{")):
            raise SagecacheError(
                f"'{key}' is set to a dict",
                file="--cfg-options",
                fix=f"Set its leaves: {key}.name=value; a section of semi is switched off by {key}=None.",
            )
        overrides[key] = value
    return overrides
