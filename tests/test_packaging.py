"""What is built and installed: the lock fits pyproject, and the wheel holds what a run needs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from sagecache.mm.compat import INSTALL, MMPOSE_PINS

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
HEADLESS = {"opencv-python": "opencv-python-headless"}  # one folder, two names: the lock has the second
TORCH = re.search(r"^TORCH := torch==(\S+)$", (ROOT / "Makefile").read_text(), re.M)[1]


def lock(file: str = "requirements.lock") -> dict[str, Version]:
    lines = (ROOT / file).read_text().splitlines()
    pins = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    return {name: Version(version) for name, version in (pin.split("==") for pin in pins)}


@pytest.mark.parametrize(
    "group", ["dependencies", "demo", "huggingface", "onnx", "ray", "s3", "tensorboard", "dev", "mmpose"]
)
def test_the_lock_satisfies_pyproject(group):
    groups = dict(PROJECT["optional-dependencies"], dependencies=PROJECT["dependencies"])
    groups |= PYPROJECT["dependency-groups"]
    locked = lock() | {"torch": Version(TORCH)}
    for requirement in map(Requirement, groups[group]):
        version = locked[HEADLESS.get(requirement.name, requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_the_benchmarks_lock_adds_and_never_contradicts():
    bench, locked = lock("requirements-bench.lock"), lock()
    assert not bench.keys() & locked.keys()
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["bench"]):
        assert requirement.specifier.contains((bench | locked)[requirement.name]), requirement


def test_the_lock_builds_the_project_and_leaves_the_heavy_out():
    locked = lock()
    (backend,) = map(Requirement, PYPROJECT["build-system"]["requires"])
    assert backend.specifier.contains(locked[backend.name])
    bake = {Requirement(text).name for text in PROJECT["optional-dependencies"]["bake"]}
    assert not (bake | {"torch", "torchvision", "warp-lang", "chumpy", "opencv-python"}) & set(locked)


def test_one_pin_of_mmpose_is_told_everywhere():
    group = [pin for pin in PYPROJECT["dependency-groups"]["mmpose"] if "==" in pin]
    assert sorted(group) == sorted(MMPOSE_PINS)
    assert all(lock()[name] == Version(version) for name, version in (pin.split("==") for pin in MMPOSE_PINS))
    assert f"torch=={TORCH}" in INSTALL
    assert " ".join(MMPOSE_PINS) in (ROOT / "pyproject.toml").read_text()  # the comment above dependencies
    assert f"pip install torch=={TORCH}" in (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def tracked(*patterns: str) -> set[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return {path for path in found if "__pycache__" not in path.parts}


def test_no_link_is_tracked():
    """It leads out of the checkout: on another machine to nothing, on this one into somebody's files."""
    listed = subprocess.run(
        ["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert listed and [line for line in listed.splitlines() if line.startswith("120000")] == []


def test_the_wheel_holds_every_module_and_asset(wheel):
    files = tracked("sagecache/**/*.py", "sagecache/synth/assets/*", "sagecache/models/weights/*.safetensors")
    files |= tracked("sagecache/visualization/page.*")
    assert {path.name for path in files} >= {"page.html.j2", "page.css", "page.js"}
    names = set(wheel.namelist())
    for path in files:
        member = path.relative_to(ROOT).as_posix()
        assert member in names
        assert wheel.getinfo(member).file_size == path.stat().st_size


def test_the_wheel_holds_the_embedded_project_where_it_is_looked_for(wheel, tmp_path):
    demo = ROOT / "configs" / "demo"
    pages = {path.relative_to(demo).as_posix() for path in tracked("configs/demo/**/*")}
    inside = "sagecache/configs/demo/"
    assert {name.removeprefix(inside) for name in wheel.namelist() if name.startswith(inside)} == pages
    wheel.extractall(tmp_path)
    code = "from sagecache.project import embedded_project; print(embedded_project())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert Path(done.stdout.strip()) == tmp_path.resolve() / "sagecache/configs/demo", done.stderr


def test_nothing_but_the_package_is_in_the_wheel(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sagecache"}
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "sagecache = sagecache.cli.main:main" in wheel.read(entry).decode()
