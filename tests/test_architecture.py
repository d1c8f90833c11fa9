"""The plan of the house, checked: contracts, lengths, lazy imports, mirrored tests, declared packages."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sagecache"
MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS = 450, 70, 10
FOLDERS = ("sagecache", "configs", "tests", "tools", "benchmarks")

# Modules without a mirrored test, each with where it is tested instead.
UNMIRRORED = {
    "structures": "holds data and no behaviour",
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- import direction ----------------------------------------------------------------------------------


def lint_imports(folder: Path) -> tuple[int, str]:
    command = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as c; c()"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def test_import_contracts_hold():
    code, output = lint_imports(ROOT)
    assert code == 0, output


def test_import_contracts_catch_planted_faults(tmp_path):
    """Otherwise a contract that names nothing would stay green."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        PACKAGE, tmp_path / "sagecache", ignore=shutil.ignore_patterns("assets", "weights", "*.pyc")
    )
    for place, fault in {
        "store/planted.py": "import torch\n",
        "geometry/planted.py": "from sagecache.project import Project\n",
        "evaluation/planted.py": "import rich.table\n",
        "mm/planted.py": "import sagecache.teachers.base\n",
        "attic/__init__.py": "",
    }.items():
        (tmp_path / "sagecache" / place).parent.mkdir(exist_ok=True)
        (tmp_path / "sagecache" / place).write_text(fault)
    code, output = lint_imports(tmp_path)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert code == 1
    for contract in contracts:
        assert re.search(rf"^{re.escape(contract['name'])}\s+BROKEN", output, re.M), output
    assert "sagecache.attic" in output  # a room that no layer names


# -- lazy imports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("sagecache", ("numpy", "torch")),
        ("sagecache.structures, sagecache.errors", ("torch",)),
        ("sagecache.skeleton", ("torch", "zarr", "mmengine")),
        ("sagecache.store", ("torch", "cv2", "mmengine")),
        ("sagecache.store.reader", ("torch", "zarr", "cv2")),
        ("sagecache.geometry.affine", ("mmengine", "mmpose")),
        ("sagecache.project", ("mmpose", "zarr")),
    ],
)
def test_a_room_brings_only_what_it_needs(imported, absent):
    loaded = python(f"import sys; import {imported}; print(*sys.modules)").split()
    assert not set(absent) & set(loaded)


def test_help_of_every_command_is_light():
    """In one fresh interpreter, so that the first heavy import would show."""
    code = """
import json, sys
import click
from click.testing import CliRunner
from sagecache.cli.main import cli

def paths(command, path):
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            yield from paths(command.get_command(context, child), [*path, child])

failed = [path for path in paths(cli, []) if CliRunner().invoke(cli, [*path, "--help"]).exit_code]
print(json.dumps([failed, sorted(sys.modules)]))
"""
    failed, loaded = json.loads(python(code))
    assert failed == []
    heavy = {"torch", "mmpose", "mmengine", "mmcv", "zarr", "scipy", "cv2", "matplotlib", "pycocotools"}
    assert not heavy & set(loaded)


# -- how it is written ---------------------------------------------------------------------------------


def test_lengths():
    wrong = []
    for path in sources(*FOLDERS):
        text = path.read_text()
        lines = len(text.splitlines())
        wrong += [f"{name(path)}: {lines} lines"] if lines >= MAX_LINES else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length, parameters = node.end_lineno - node.lineno + 1, count_parameters(node)
                if length > MAX_FUNCTION or parameters > MAX_PARAMETERS:
                    wrong.append(f"{name(path)}: {node.name} has {length} lines, {parameters} parameters")
    assert wrong == []


def count_parameters(function: ast.FunctionDef) -> int:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in arguments)


def test_nothing_is_left_undone_or_tied_to_a_machine():
    undone = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
    home = re.compile(r"(?<![\w.~$}])/(home|root|work|Users)/")
    found = []
    for path in sources(*FOLDERS) + sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")):
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if undone.search(line) or home.search(line):
                found.append(f"{name(path)}:{number}: {line.strip()}")
    assert found == []


def test_swallowed_exceptions():
    found = []
    for path in sources("sagecache", "tools"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or isinstance(node.body[0], ast.Pass)
            ):
                found.append(f"{name(path)}:{node.lineno}")
    assert found == []


def test_every_module_has_its_mirrored_test():
    modules = [p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    missing = []
    for path in sorted(modules):
        module = path.relative_to(PACKAGE).with_suffix("")
        if not (ROOT / "tests" / module.parent / f"test_{module.name}.py").is_file():
            missing.append(module.as_posix())
    assert missing == sorted(UNMIRRORED)


def test_every_room_is_a_package():
    rooms = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [name(room) for room in sorted(rooms) if not (room / "__init__.py").is_file()] == []


# -- what it stands on ---------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "google_crc32c": "google-crc32c",
    "upath": "universal-pathlib",
}
EXTRAS = {
    "embreex": "demo",
    "anny": "bake",
    "pyarrow": "arrow",
    "ray": "ray",
    "upath": "s3",
    "transformers": "huggingface",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}  # imported by what needs the extra, and by nothing else


def third_party(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"sagecache"}


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower() for requirement in requirements}


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = requirement_names(project["project"]["dependencies"])
    declared |= requirement_names(project["dependency-groups"]["mmpose"])
    extras = project["project"]["optional-dependencies"]
    for path in sources("sagecache"):
        for module in third_party(path):
            known = requirement_names(extras[EXTRAS[module]]) if module in EXTRAS else declared
            assert DISTRIBUTIONS.get(module, module).lower() in known, f"{name(path)} imports {module}"
