"""What processes add up; `test_filtering` does it with two real ones."""

from types import SimpleNamespace

import pytest
import torch

from sagecache.semi import reduction


def group(available: bool, initialised: bool, all_reduce=None) -> SimpleNamespace:
    return SimpleNamespace(
        is_available=lambda: available, is_initialized=lambda: initialised, all_reduce=all_reduce
    )


@pytest.mark.parametrize("world", [group(False, True), group(True, False)], ids=["not built", "no group"])
def test_one_process_keeps_its_sums(monkeypatch, world):
    monkeypatch.setattr(reduction, "distributed", world)
    sums = torch.tensor([1.0, 2.0])
    assert reduction.over_processes(sums) is sums and sums.tolist() == [1, 2]


def test_several_add_theirs_in_place(monkeypatch):
    monkeypatch.setattr(reduction, "distributed", group(True, True, lambda sums: sums.add_(10)))
    sums = torch.tensor([1.0, 2.0])
    assert reduction.over_processes(sums) is sums and sums.tolist() == [11, 12]
