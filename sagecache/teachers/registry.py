"""From a project's config to a teacher or a detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sagecache.errors import SagecacheError, nearest
from sagecache.strict import build, call_with
from sagecache.teachers.base import Detector, Teacher
from sagecache.teachers.demo import DemoDetector, DemoGeometry
from sagecache.teachers.torchscript import TorchScriptSettings, TorchScriptTeacher

Options = Mapping[str, object]

TEACHERS: dict[str, Callable[[Options], Teacher]] = {
    "demo": lambda options: _demo(DemoGeometry, options, "teacher"),
    "torchscript": lambda options: TorchScriptTeacher(
        build(TorchScriptSettings, options, "data.py", "teacher")
    ),
}
DETECTORS: dict[str, Callable[[Options], Detector]] = {
    "demo": lambda options: _demo(DemoDetector, options, "detector"),
}


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
