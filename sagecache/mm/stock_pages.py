"""Stock pages of mmpose name networks of mmpretrain and mmdet; those that exist here are taken instead.

ViTPose and Sapiens say ``mmpretrain.VisionTransformer``, RTMPose says CSPNeXt in the scope of mmdet. Neither
package is needed for them, and where one is installed the pages mean the same network as elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry

STOCK_VIT = "mmpretrain.VisionTransformer"
SCOPES = ("mmdet", "mmpretrain", "mmcls")


def known_types(model: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """A model page in which types of SCOPES that the registry has under their own names are those.

    Other types stay as they are: building them asks for their package.
    """
    return {key: _known(value, registry) for key, value in model.items()}


def _known(value: Any, registry: Registry) -> Any:
    if not isinstance(value, Mapping):
        return value
    config = {key: _known(one, registry) for key, one in value.items()}
    scope, _, name = str(config.get("type", "")).rpartition(".")
    if (scope or config.get("_scope_")) in SCOPES and name in registry.module_dict:
        config["type"] = name
        config.pop("_scope_", None)
    return config
