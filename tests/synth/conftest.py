import dataclasses

import numpy as np
import pytest

from sagecache.synth.body import Body
from sagecache.synth.looks import LOOKS
from sagecache.synth.render import render


@pytest.fixture(scope="session")
def body():
    return Body.load()


@pytest.fixture(scope="session")
def renderings(body):
    """A few small pictures of every look."""
    return {
        name: [render(body, np.random.default_rng([7, index]), look, (112, 96)) for index in range(4)]
        for name, look in LOOKS.items()
    }


@pytest.fixture(scope="session")
def bare_target():
    """The target look with one supine infant, nothing before it, torso up."""
    return dataclasses.replace(
        LOOKS["target"],
        kinds={"supine": 1.0},
        people=(1.0,),
        blanket=0.0,
        toys=(1.0,),
        rails=0.0,
        elevation=(80, 88),
        lying_elevation=(80, 88),
        torso_turn=10.0,
    )
