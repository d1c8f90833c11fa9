"""docs/extending.md: its examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sagecache.mm.terms import TERMS, TermKind
from sagecache.strict import call_with
from sagecache.structures import TermOutput, UnlabeledBatch
from sagecache.teachers.registry import TEACHERS, build_teacher

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_example_teacher_registers_and_answers_as_its_spec_says(monkeypatch):
    monkeypatch.setattr("sagecache.teachers.registry.TEACHERS", dict(TEACHERS))
    from sagecache.teachers import registry

    names = dict(TEACHERS=registry.TEACHERS, call_with=call_with)
    teacher_class, registration = (text for text in blocks() if "FlatTeacher" in text)
    exec(teacher_class, names)
    exec(registration, names)
    teacher = build_teacher(names["teacher"])
    maps = teacher(np.zeros((2, 256, 192, 3), np.uint8))
    assert {name: value.shape for name, value in maps.items()} == {
        "depth": (2, 1, 64, 48),
        "normal": (2, 3, 64, 48),
        "mask": (2, 1, 64, 48),
    }
    assert teacher.fingerprint()["preprocessing"] == dict(shade=0.5)


def test_the_example_term_is_built_from_a_recipe_s_words():
    names = dict(nn=nn, UnlabeledBatch=UnlabeledBatch, TermOutput=TermOutput)
    exec(next(text for text in blocks() if "class Shrink" in text), names)
    kind = TermKind(names["Shrink"])
    kind.check("shrink", dict(weight=0.1, strength=2.0))
    term = kind.build("shrink", None, dict(weight=0.1, strength=2.0))
    points = torch.tensor([[[0.0, 0.0], [200.0, 0.0]]])
    batch = UnlabeledBatch.__new__(UnlabeledBatch)
    batch.student_keypoints = points
    assert term(batch).loss.item() == 2.0 * 5000 / 1e4 and "shrink" not in TERMS
