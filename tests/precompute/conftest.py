"""Images and instances on disk, written once a session; tests that spoil one copy them first."""

import os
import shutil
from pathlib import Path

import pytest
from toy_teacher import make_instances, write_images

from sagecache.structures import Instance


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> list[tuple[int, Path]]:
    return write_images(tmp_path_factory.mktemp("images"), 7)


@pytest.fixture(scope="session")
def instances(images) -> list[Instance]:
    return make_instances(images)


@pytest.fixture
def own_images(images, tmp_path) -> list[tuple[int, Path]]:
    """The same images, to be spoilt."""
    folder = tmp_path / "images"
    shutil.copytree(images[0][1].parent, folder)
    return [(image_id, folder / path.name) for image_id, path in images]


@pytest.fixture(scope="session")
def ray():
    """A small cluster on this machine, whose workers can import the tests' own modules."""
    ray = pytest.importorskip("ray", reason="the engine 'ray' needs the package ray")
    tests = str(Path(__file__).parents[1])
    paths = {"PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths})
    yield ray
    ray.shutdown()
