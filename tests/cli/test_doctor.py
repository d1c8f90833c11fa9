"""The doctor's findings against broken set-ups, and its exit code as a shell sees it."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dots import change_labels, write_dots_project

from sagecache.cli import doctor
from sagecache.cli.doctor import GIB, check_disk, check_packages
from sagecache.cli.jobs import stats_job
from sagecache.errors import SagecacheError
from sagecache.precompute.runner import run_stats
from sagecache.project import Project

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def report(monkeypatch):
    """Run ``sagecache --project FOLDER doctor --json`` in this process; mmpose is taken as importable."""
    monkeypatch.setattr("sagecache.mm.compat.shim_status", lambda: [])

    @click.group()
    @click.option("--project")
    def cli(project): ...

    cli.add_command(doctor.doctor_command)

    def run(*arguments):
        result = CliRunner().invoke(cli, [*map(str, arguments), "doctor", "--json"])
        assert not result.exception or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, json.loads(result.stdout)

    return run


def write_project(folder, annotations="labels.json"):
    splits = {name: dict(images="images", annotations=annotations) for name in ("labeled", "val")}
    folder.mkdir()
    (folder / "data.py").write_text(f"splits = {splits!r}\nteacher = dict(type='demo')\n")
    (folder / "model.py").write_text("model = dict(type='TopdownPoseEstimator')\n")
    page = "data = dict(labeled='labeled', val='val')\ntrain_cfg = dict(max_iters=1)\n"
    (folder / "stage0.py").write_text(page)
    return folder


def states(findings, section="project"):
    return {row["name"]: row["state"] for row in findings if row["section"] == section}


def test_packages_are_compared_with_what_is_installed():
    findings = {
        finding.name: finding
        for finding in check_packages(
            [
                "numpy>=1",
                "torch>=99",
                "no-such-package==1.0",
                'no-such-extra>=2; extra == "demo"',
                'no-such-tool>=2; extra == "dev"',
                'no-such-windows; sys_platform == "never"',
                "opencv-python>=4",
            ]
        )
    }
    assert findings["numpy"].value == np.__version__ and findings["numpy"].state == "ok"
    assert findings["torch"].state == "error" and torch.__version__ in findings["torch"].value
    assert findings["no-such-package"].state == "error"
    assert findings["no-such-package"].fix == 'pip install "no-such-package==1.0"'
    assert findings["no-such-extra"].state == "note"
    assert not {"no-such-tool", "no-such-windows"} & set(findings)
    assert any(name.startswith("opencv-") and finding.state == "ok" for name, finding in findings.items())


def test_disk_is_judged_where_the_folder_will_be(tmp_path, monkeypatch):
    root = tmp_path / "not" / "made" / "yet"
    asked = []
    for free, state in ((10 * GIB, "ok"), (2 * GIB, "note"), (GIB // 10, "error")):
        usage = Usage(0, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: asked.append(path) or usage)
        assert check_disk("cache", root).state == state
    assert set(asked) == {tmp_path}
    assert not root.exists()


def test_a_root_below_a_file_is_no_place(tmp_path):
    (tmp_path / "file").write_text("")
    finding = check_disk("work", tmp_path / "file" / "work_dirs")
    assert finding.state == "error" and "work_root" in finding.fix


def test_missing_labels_are_an_error_until_they_are_there(tmp_path, report):
    folder = write_project(tmp_path / "mine")
    code, answer = report("--project", folder)
    assert (code, answer["ok"]) == (1, False)
    assert states(answer["findings"])["split labeled"] == "error"

    (folder / "labels.json").write_text("{}")
    code, answer = report("--project", folder)
    (row,) = [row for row in answer["findings"] if row["name"] == "split labeled"]
    assert (row["state"], row["value"]) == ("error", f"its image folder is not there: {folder / 'images'}")
    assert "split 'labeled' in data.py" in row["fix"]

    (folder / "images").mkdir()
    code, answer = report("--project", folder)
    assert states(answer["findings"])["split labeled"] == "ok"
    broken = [row for row in answer["findings"] if row["state"] == "error"]
    assert code == bool(broken)
    assert not [row for row in broken if row["section"] in ("project", "disk")]


def test_statistics_of_other_labels_are_an_error_with_the_one_command_that_mends_them(tmp_path, report):
    folder = write_dots_project(tmp_path / "mine")
    project = Project.open(folder)
    run_stats(stats_job(project))
    written = project.stats_file.read_bytes()
    assert states(report("--project", folder)[1]["findings"])["stats labeled"] == "ok"
    change_labels(folder)
    code, answer = report("--project", folder)
    (row,) = [row for row in answer["findings"] if row["name"] == "stats labeled"]
    assert (code, row["state"]) == (1, "error") and "made from other labels" in row["value"]
    assert row["fix"] == f"Run: sagecache --project {folder} precompute stats --force"
    assert project.stats_file.read_bytes() == written


def test_weights_that_are_named_and_not_there_are_errors(tmp_path, report):
    """A start always; a teacher's where its targets are still to be made."""
    folder = write_project(tmp_path / "mine")
    page = folder / "stage0.py"
    page.write_text(page.read_text() + "load_from = 'weights/start.pth'\n")
    teacher = "dict(type='torchscript', files=dict(depth='weights/depth.pt2'))"
    data = folder / "data.py"
    data.write_text(data.read_text().replace("dict(type='demo')", teacher))
    (folder / "labels.json").write_text("{}")
    findings = states(report("--project", folder)[1]["findings"])
    assert findings["load_from of stage0"] == "error" and "teacher" not in findings
    (folder / "weights" / "start.pth").mkdir(parents=True)
    told = [row["value"] for row in report("--project", folder)[1]["findings"] if "load_from" in row["name"]]
    assert told == [f"{folder / 'weights' / 'start.pth'} is a folder without weights"]
    terms = "semi = dict(terms=dict(geometry=dict()))\nbatch = dict(labeled=2, unlabeled=2)\n"
    (folder / "more.py").write_text(
        "data = dict(labeled='labeled', unlabeled='val', val=None, probe=None)\n" + terms
    )
    found = report("--project", folder)[1]["findings"]
    assert states(found)["teacher"] == "error"
    assert any(str(folder / "weights" / "depth.pt2") in row["value"] for row in found)


def test_a_detection_file_that_is_named_and_not_there_is_an_error(tmp_path, report):
    folder = write_dots_project(tmp_path / "mine")
    page, text = folder / "data.py", (folder / "data.py").read_text()
    for boxes, state in (("detect", "note"), ("found.json", "error")):
        page.write_text(text.replace("unlabeled=dict(", f'unlabeled=dict(boxes="{boxes}", '))
        assert states(report("--project", folder)[1]["findings"])["boxes unlabeled"] == state
    (folder / "found.json").write_text("[]")
    assert states(report("--project", folder)[1]["findings"])["boxes unlabeled"] == "ok"


@pytest.mark.parametrize("size", ["-5", "0", "nan", "inf"])
def test_a_gpu_of_no_size_is_refused(size):
    done = CliRunner().invoke(doctor.doctor_command, ["--recipe", "stage0", "--gpu", size])
    assert done.exit_code == 2 and "--gpu" in done.stderr


def test_a_gpu_that_is_not_there_is_an_error_where_something_is_to_make(tmp_path, report, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    folder = write_project(tmp_path / "mine")
    data, made = folder / "data.py", "dict(type='torchscript', files=dict(depth='net.pt2'), device='cuda')"
    data.write_text(data.read_text().replace("dict(type='demo')", made))
    (folder / "labels.json").write_text("{}")
    (folder / "net.pt2").write_bytes(b"weights")
    assert "teacher" not in states(report("--project", folder)[1]["findings"])
    terms = "semi = dict(terms=dict(geometry=dict()))\nbatch = dict(labeled=2, unlabeled=2)\n"
    page = "data = dict(labeled='labeled', unlabeled='val', val=None, probe=None)\n" + terms
    (folder / "more.py").write_text(page)
    code, answer = report("--project", folder)
    (row,) = [row for row in answer["findings"] if row["name"] == "teacher"]
    assert code == 1 and row["value"] == "device 'cuda' is asked for, and torch sees none"
    assert row["state"] == "error" and "device='cpu'" in row["fix"]


def test_a_broken_page_is_told_with_its_name(tmp_path, report):
    folder = write_project(tmp_path / "mine")
    (folder / "stage0.py").write_text("train_cgf = dict(max_iters=1)\n")
    code, answer = report("--project", folder)
    row = next(row for row in answer["findings"] if row["name"] == "stage0")
    assert code == 1 and "train_cgf" in row["value"] and "train_cfg" in row["value"] + row["fix"]


def test_no_project_is_a_finding_not_a_crash(tmp_path, report):
    code, answer = report("--project", tmp_path)
    assert code == 1
    assert any(row["section"] == "project" and row["state"] == "error" for row in answer["findings"])


def test_mmpose_that_cannot_be_imported_stops_training(tmp_path, report, monkeypatch):
    def broken():
        raise SagecacheError("mmpose is not installed", fix="pip install it")

    monkeypatch.setattr("sagecache.mm.compat.shim_status", broken)
    code, answer = report()
    row = next(row for row in answer["findings"] if row["section"] == "shims")
    assert code == 1 and row == dict(
        section="shims", name="mmpose", value="mmpose is not installed", state="error", fix="pip install it"
    )


def test_the_demo_that_cannot_render_is_an_error(tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    code, answer = report()
    assert code == 1 and states(answer["findings"])["split labeled"] == "error"


def test_as_typed_on_this_machine(tmp_path):
    """The real command: every line of the table in plain text, and an exit code that fits it."""
    environment = {key: value for key, value in os.environ.items() if key != "SAGECACHE_PROJECT"}
    done = subprocess.run(
        [sys.executable, "-c", "from sagecache.cli.doctor import doctor_command as run; run()"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    *lines, verdict = done.stdout.splitlines()
    errors = [line for line in lines if line.startswith("error")]
    assert done.returncode == bool(errors), done.stderr
    assert (verdict == "ready to train") is not bool(errors)
    assert any(line.split() == ["ok", "packages", "mmpose:", metadata.version("mmpose")] for line in lines)
    assert any(
        "geo unlabeled" in line and "sagecache precompute geo --split unlabeled" in line for line in lines
    )
    assert not list(tmp_path.iterdir())  # looking makes nothing
