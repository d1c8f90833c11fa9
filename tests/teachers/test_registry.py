from inspect import signature

import pytest

from sagecache.errors import SagecacheError
from sagecache.teachers.demo import DemoDetector
from sagecache.teachers.huggingface_detector import HuggingFaceDetector
from sagecache.teachers.registry import build_detector, build_teacher
from sagecache.teachers.torchscript_detector import TorchScriptDetectorSettings


def test_builders_name_the_nearest_known():
    with pytest.raises(SagecacheError, match="[Dd]id you mean 'torchscript'"):
        build_teacher(dict(type="torchscipt"))
    with pytest.raises(SagecacheError, match="no 'type'"):
        build_detector({})
    with pytest.raises(SagecacheError, match="[Dd]id you mean 'flip_test'"):
        build_teacher(dict(type="demo", flip=4))
    with pytest.raises(SagecacheError, match="unknown key 'teacher.net'"):
        build_teacher(dict(type="demo", net=None))


def test_settings_reach_the_teacher():
    once, twice = (build_teacher(dict(type="demo", flip_test=flip)) for flip in (False, True))
    assert once.fingerprint()["preprocessing"] != twice.fingerprint()["preprocessing"]
    strict = build_detector(dict(type="demo", score=0.9)).fingerprint()
    assert strict["rule"]["score"] == 0.9 and strict != build_detector(dict(type="demo")).fingerprint()


@pytest.mark.parametrize(
    "maker, nms",
    [(DemoDetector, 0.5), (HuggingFaceDetector, 0.7), (TorchScriptDetectorSettings, 0.7)],
)
def test_rules_of_boxes_by_default(maker, nms):
    """They stand in fingerprints: to change one is to have every box found anew."""
    found = {name: one.default for name, one in signature(maker).parameters.items()}
    assert (found["score"], found["nms"], found["limit"]) == (0.05, nms, 10)


@pytest.mark.parametrize(
    "builder, options, told",
    [
        (build_teacher, dict(map_size=5), "'teacher.map_size' should be a list, got 5"),
        (build_teacher, dict(flip_test="all"), "'teacher.flip_test' should be bool, got 'all'"),
        (build_detector, dict(score="a"), "'detector.score' should be float, got 'a'"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named(builder, options, told):
    with pytest.raises(SagecacheError, match=told):
        builder(dict(type="demo", **options))
