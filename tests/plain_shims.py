"""Plain mmpose 1.3.2 on today's torch and numpy without sagecache: stand-ins while it is imported."""

import importlib
import sys
from types import ModuleType


def module(name, **values):
    made = ModuleType(name)
    made.__path__ = []
    for key, value in values.items():
        setattr(made, key, value)
    return made


STAND_INS = {
    "xtcocotools._mask": importlib.import_module("pycocotools._mask"),
    "mmcv._ext": type("Ext", (ModuleType,), {"__getattr__": lambda self, name: None})("mmcv._ext"),
    "mmdet": module("mmdet"),
    "mmdet.utils": module("mmdet.utils", ConfigType=dict, reduce_mean=None),
    "torchvision": module("torchvision"),
    "torchvision.transforms": module("torchvision.transforms", ToPILImage=None),
}
importlib.import_module(
    "mmengine.runner"
)  # before the stand-ins: it imports transformers, which asks for one
sys.modules.update(STAND_INS)
importlib.import_module("mmpose.apis")
for name in ("mmcv._ext", "mmdet", "mmdet.utils", "torchvision", "torchvision.transforms"):
    del sys.modules[name]  # transformers asks for them
