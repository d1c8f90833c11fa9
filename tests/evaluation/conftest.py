import numpy as np
import pytest
from ranked_world import guess, make_truth


@pytest.fixture(scope="module")
def world():
    """Truth, good results, worse results."""
    rng = np.random.default_rng(0)
    truth = make_truth(rng, 30, crowds=0.2)
    return truth, guess(truth, rng, 4.0), guess(truth, rng, 6.0)
