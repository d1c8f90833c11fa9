"""Frozen teachers and detectors: crops or images in, maps or boxes out."""

from sagecache.teachers.base import (
    DETECTORS,
    TEACHERS,
    Detector,
    Teacher,
    TeacherSpec,
    build_detector,
    build_teacher,
)

__all__ = ["DETECTORS", "TEACHERS", "Detector", "Teacher", "TeacherSpec", "build_detector", "build_teacher"]
