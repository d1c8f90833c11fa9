"""Which project a command opens: its own --project, the group's, the variable's, the demo."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from dots import write_dots_project

from sagecache.cli.context import json_option, project_option
from sagecache.errors import SagecacheError


@click.group()
@click.option("--project")
def group(project): ...


@group.command()
@click.argument("word")
@project_option
@json_option
def show(word, project, as_json):
    click.echo(f"{word} {project.folder} {project.embedded} {as_json}")


def shown(*words: object) -> list[str]:
    result = CliRunner().invoke(group, list(map(str, words)))
    if isinstance(result.exception, SagecacheError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.delenv("SAGECACHE_PROJECT", raising=False)
    return [write_dots_project(tmp_path / name) for name in ("one", "two", "three")]


def test_the_nearest_word_wins(folders, monkeypatch):
    one, two, three = folders
    assert shown("show", "a")[2] == "True"
    monkeypatch.setenv("SAGECACHE_PROJECT", str(three))
    assert shown("show", "a") == ["a", str(three), "False", "False"]
    assert shown("--project", two, "show", "a")[1] == str(two)
    assert shown("--project", two, "show", "a", "--project", one)[1] == str(one)
    assert shown("show", "--project", one, "a", "--json") == ["a", str(one), "False", "True"]


def test_a_folder_that_is_no_project_says_how_to_make_one(tmp_path):
    with pytest.raises(SagecacheError, match="sagecache init"):
        shown("show", "a", "--project", tmp_path)


def test_commands_keep_their_name_and_help(folders):
    text = CliRunner().invoke(group, ["show", "--help"]).stdout
    assert "Usage: group show [OPTIONS] WORD" in text and "--project" in text and "$SAGECACHE_PROJECT" in text


@group.command()
@project_option
def fail(project):
    raise SagecacheError("no statistics", fix="Make them: sagecache precompute stats")


def test_what_an_error_advises_is_for_the_project_at_hand(folders):
    with pytest.raises(SagecacheError, match=f"Make them: sagecache --project {folders[0]} precompute stats"):
        shown("fail", "--project", folders[0])


def test_who_forgets_project_beside_a_project_is_told(folders, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    told = CliRunner().invoke(group, ["show", "a"])
    assert told.stderr == "the embedded demo; for the project here: --project one\n"
    assert not CliRunner().invoke(group, ["show", "a", "--project", "two"]).stderr
    folders[0].rename(folders[0].with_name("a one"))  # what is told can be typed
    assert "for the project here: --project 'a one'\n" in CliRunner().invoke(group, ["show", "a"]).stderr
    folders[0].with_name("a one").rename(folders[0])
    monkeypatch.chdir(folders[0] / "data")
    assert not CliRunner().invoke(group, ["show", "a"]).stderr
