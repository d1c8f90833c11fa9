"""Frozen teachers and detectors: crops or images in, maps or boxes out."""

from sagecache.teachers.base import Detector, Teacher, TeacherSpec
from sagecache.teachers.registry import DETECTORS, TEACHERS, build_detector, build_teacher

__all__ = ["DETECTORS", "TEACHERS", "Detector", "Teacher", "TeacherSpec", "build_detector", "build_teacher"]
