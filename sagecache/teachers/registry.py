"""From a project's config to a teacher or a detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from sagecache.errors import SagecacheError, nearest
from sagecache.strict import build, call_with
from sagecache.teachers.base import Detector, Teacher
from sagecache.teachers.demo import DemoDetector, DemoGeometry
from sagecache.teachers.huggingface import HuggingFaceSettings, HuggingFaceTeacher
from sagecache.teachers.huggingface_detector import HuggingFaceDetector
from sagecache.teachers.sapiens import SapiensSettings, SapiensTeacher
from sagecache.teachers.torchscript import TorchScriptSettings, TorchScriptTeacher
from sagecache.teachers.torchscript_detector import TorchScriptDetector, TorchScriptDetectorSettings

Options = Mapping[str, object]
T = TypeVar("T")

TEACHERS: dict[str, Callable[[Options], Teacher]] = {
    "demo": lambda options: _demo(DemoGeometry, options, "teacher"),
    "huggingface": lambda options: HuggingFaceTeacher(_settings(HuggingFaceSettings, options, "teacher")),
    "sapiens": lambda options: SapiensTeacher(_settings(SapiensSettings, options, "teacher")),
    "torchscript": lambda options: TorchScriptTeacher(_settings(TorchScriptSettings, options, "teacher")),
}
DETECTORS: dict[str, Callable[[Options], Detector]] = {
    "demo": lambda options: _demo(DemoDetector, options, "detector"),
    "huggingface": lambda options: call_with(HuggingFaceDetector, options, "data.py", "detector"),
    "torchscript": lambda options: TorchScriptDetector(
        _settings(TorchScriptDetectorSettings, options, "detector")
    ),
}


def _settings(cls: type[T], options: Options, what: str) -> T:
    return build(cls, options, "data.py", what)


def _demo(builder: Callable, options: Options, what: str):
    """With the committed weights; other networks come from code."""
    return call_with(builder, options, "data.py", what, net=None, weights_hash=None)


def build_teacher(config: Options) -> Teacher:
    """Teacher of a project's config, e.g. dict(type='demo', flip_test=True). Raises SagecacheError."""
    return _build(config, TEACHERS, "teacher")


def build_detector(config: Options) -> Detector:
    """Detector of a project's config, e.g. dict(type='demo', score=.3). Raises SagecacheError."""
    return _build(config, DETECTORS, "detector")


def _build(config: Options, builders: Mapping[str, Callable], what: str):
    if "type" not in config:
        raise SagecacheError(f"the {what} has no 'type'", fix=f"Known: {', '.join(sorted(builders))}")
    kind = str(config["type"])
    if kind not in builders:
        raise SagecacheError(f"unknown {what} '{kind}'", fix=nearest(kind, builders))
    return builders[kind]({key: value for key, value in config.items() if key != "type"})
