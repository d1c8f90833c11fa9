"""The program as a shell sees it: exit codes, one line for an error, no traceback unless asked for."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from dots import write_dots_project

from sagecache import __version__
from sagecache.cli import main as module
from sagecache.cli.main import COMMANDS, cli, main
from sagecache.errors import SagecacheError

ROOT = Path(__file__).resolve().parents[2]


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``sagecache WORDS…`` in this process."""
    monkeypatch.setattr(sys, "argv", ["sagecache", *words])
    with pytest.raises(SystemExit) as done:
        main()
    captured = capsys.readouterr()
    return done.value.code, captured.out, captured.err


def test_version_and_help(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version")[:2] == (0, f"sagecache, version {__version__}\n")
    code, text, _ = run(monkeypatch, capsys, "-h")
    listed = [line.split()[0] for line in text.split("Commands:")[1].splitlines() if line.strip()]
    assert code == 0 and [word for word in listed if word in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says(name):
    command = cli.get_command(click.Context(cli), name)
    assert command.name == name and command.help
    assert command is getattr(importlib.import_module(f"sagecache.cli.{COMMANDS[name]}"), f"{name}_command")


def test_a_mistyped_command_is_told_the_nearest(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "trian", "stage0")
    assert (code, out) == (
        2,
        "",
    ) and "No command 'trian': did you mean 'train'? Known: ablate, cache" in err
    assert run(monkeypatch, capsys, "--no-such-option")[0] == 2


@pytest.mark.parametrize("words", [("--draw", "2"), ("--debug",)])
def test_an_option_of_the_program_behind_the_command_is_told_where_it_goes(monkeypatch, capsys, words):
    code, _, err = run(monkeypatch, capsys, "train", "stage0", *words)
    assert code == 2 and f"It goes before the command: sagecache {words[0]} …" in err
    assert "Goes before the command" in " ".join(run(monkeypatch, capsys, "-h")[1].split())
    assert "goes before" not in run(monkeypatch, capsys, "train", "stage0", "--drow")[2]


def test_an_error_of_the_user_is_one_line_and_exit_2(monkeypatch, capsys, tmp_path):
    code, out, err = run(monkeypatch, capsys, "--project", str(tmp_path), "data", "check")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}: no data.py, so this is no project. Make one: sagecache init DIR.\n"


def test_debug_shows_where_an_error_of_the_user_came_from(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["sagecache", "--debug", "--project", str(tmp_path), "data", "check"])
    with pytest.raises(SagecacheError, match="no data.py"):
        main()


def test_a_place_that_cannot_be_written_is_one_line_with_file_and_reason(monkeypatch, capsys, tmp_path):
    folder = write_dots_project(tmp_path / "mine")
    (folder / "cache").write_text("a file where the cache belongs")
    words = ("--project", str(folder), "precompute", "geo", "--split", "val")
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {folder}/cache/val") and "Not a directory" in err
    monkeypatch.setattr(sys, "argv", ["sagecache", "--debug", *words])
    with pytest.raises(NotADirectoryError):
        main()


def test_an_error_of_the_system_without_a_file_is_one_line_too(monkeypatch, capsys):
    @click.command("demo")
    def demo_command():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sagecache.cli.demo.demo_command", demo_command)
    code, _, err = run(monkeypatch, capsys, "demo")
    assert code == 2 and err.startswith("error: No space left on device.") and err.count("\n") == 1


@pytest.mark.parametrize("words", [("cache", "ls"), ("precompute", "geo", "--split", "val")])
def test_a_bucket_that_does_not_answer_is_one_line_with_its_endpoint(monkeypatch, capsys, tmp_path, words):
    s3fs = pytest.importorskip("s3fs", reason="s3:// needs the package s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # they know the endpoint of the test before
    folder = write_dots_project(tmp_path / "mine")
    page = folder / "data.py"
    page.write_text(page.read_text() + 'store_root = "s3://nobody/targets"\n')
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"  # bound, and nobody listens
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
        settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"} | dict.fromkeys(names, "x")
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        code, out, err = run(monkeypatch, capsys, "--project", str(folder), *words)
    told = err.splitlines()[-1]
    assert (code, out) == (2, "") and "Traceback" not in err
    assert told.startswith("error: ") and f"{endpoint}/nobody" in told and "?" not in told
    s3fs.S3FileSystem.clear_instance_cache()
    assert f"AWS_ENDPOINT_URL ({endpoint})" in told and "network" in told


def test_a_fault_of_ours_is_never_hidden(monkeypatch):
    @click.command("demo")
    def demo_command():
        raise ZeroDivisionError

    monkeypatch.setattr("sagecache.cli.demo.demo_command", demo_command)
    monkeypatch.setattr(sys, "argv", ["sagecache", "demo"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize(
    "stop, told",
    [
        (KeyboardInterrupt, "run the same command again to go on"),
        (click.Abort, "run the same command again to go on"),
        (click.Abort("add --resume"), "add --resume"),
    ],
)
def test_ctrl_c_says_how_to_go_on_and_exits_130(monkeypatch, capsys, stop, told):
    @click.command("demo")
    def demo_command():
        raise stop

    monkeypatch.setattr("sagecache.cli.demo.demo_command", demo_command)
    code, _, err = run(monkeypatch, capsys, "demo")
    assert code == 130 and err.strip() == f"stopped; {told}"


@pytest.mark.parametrize("code", [0, 1])
def test_a_command_s_own_exit_code_is_the_program_s(monkeypatch, capsys, code):
    @click.command("demo")
    @click.pass_context
    def demo_command(context):
        context.exit(code)

    monkeypatch.setattr("sagecache.cli.demo.demo_command", demo_command)
    assert run(monkeypatch, capsys, "demo")[0] == code


def start(*words: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, *words], env=environment, **pipes, **options)


def test_as_a_module_in_a_shell(tmp_path):
    with start("-m", "sagecache", "--project", str(tmp_path), "train", "stage0", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_signal_stops_a_command_without_a_traceback(tmp_path):
    """A command that waits for a long time is stopped as Ctrl-C would."""
    code = f"""
import sys, time, click
import {module.__name__} as module, sagecache.cli.demo as demo

@click.command("demo")
def wait():
    print("waiting", flush=True)
    time.sleep(60)

demo.demo_command = wait
sys.argv = ["sagecache", "demo"]
module.main()
"""
    with start("-c", code, cwd=tmp_path) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and err.count("\n") <= 2
