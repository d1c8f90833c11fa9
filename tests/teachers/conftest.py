import numpy as np
import pytest
import torch


@pytest.fixture
def save(tmp_path):
    def save(module, name="model.pt2"):
        path = tmp_path / name
        torch.jit.save(torch.jit.script(module), str(path))
        return str(path)

    return save


@pytest.fixture
def crops():
    crops = np.zeros((2, 16, 12, 3), np.uint8)
    crops[0, 4:, :, 0] = 200
    crops[1, :, 6:] = (40, 90, 10)
    return crops
