"""Stock pages of mmpose name networks of mmpretrain and mmdet; those that exist here are taken instead.

ViTPose and Sapiens say ``mmpretrain.VisionTransformer``, RTMPose says CSPNeXt in the scope of mmdet. Neither
package is needed for them, and where one is installed the pages mean the same network as elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STOCK_VIT = "mmpretrain.VisionTransformer"
SCOPES = ("mmdet", "mmpretrain", "mmcls")
# Of other types mmpose may have another network by the same name, as of SwinTransformer.
SAME = ("VisionTransformer", "CSPNeXt")


def known_types(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model page in which SAME of SCOPES are those of mmpose's registry.

    Other types stay as they are: building them asks for their package.
    """
    return {key: _known(value) for key, value in model.items()}


def _known(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    config = {key: _known(one) for key, one in value.items()}
    scope, _, name = str(config.get("type", "")).rpartition(".")
    if (scope or config.get("_scope_")) in SCOPES and name in SAME:
        config["type"] = name
        config.pop("_scope_", None)
    return config
