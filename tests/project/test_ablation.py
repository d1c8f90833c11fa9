"""Ablation pages: what is read, and that every slip is told with the place and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from dots import write_dots_project, write_split

from sagecache.errors import SagecacheError
from sagecache.project import Project
from sagecache.project.ablation import ablation_names, read_ablation
from sagecache.project.init import UserData, write_project

PAGE = """
control = "plain"
arms = dict(
    start=dict(recipe="stage0", asks="labels"),
    plain=dict(recipe="stage1-full", asks="all"),
    wide=dict(recipe="stage1-full", asks="more views", overrides={"views.num_strong": 2}),
)
groups = dict(views=dict(asks="More?", arms=["plain", "wide"]))
"""


@pytest.fixture
def project(tmp_path) -> Project:
    folder = write_dots_project(tmp_path / "mine")
    (folder / "ablations").mkdir()
    (folder / "ablations/two_views.py").write_text(PAGE)
    (folder / "ablations/_shared.py").write_text("")
    return Project.open(folder)


def write(project: Project, old: str, new: str) -> None:
    assert old in PAGE
    (project.folder / "ablations/two_views.py").write_text(PAGE.replace(old, new))


def test_arms_come_in_the_page_s_order_with_their_keys(project):
    assert ablation_names(project) == ["two-views"]
    page = read_ablation(project, "two-views")
    assert list(page.arms) == ["start", "plain", "wide"] and page.control == "plain" and page.floor is None
    assert page.arms["wide"].overrides == {"views.num_strong": 2}
    assert page.groups["views"].arms == ("plain", "wide")
    assert read_ablation(project, "two_views") == page


def test_the_demo_s_pages_are_sound():
    demo = Project.demo()
    assert {"reference", "sage"} <= set(ablation_names(demo))
    for name in ablation_names(demo):
        read_ablation(demo, name)


def test_the_demo_s_page_serves_a_project_of_one_s_own_without_the_oracle(tmp_path):
    """As docs/ablations.md and the error say."""
    own = tmp_path / "own"
    write_split(own, 2, 101)
    folder = tmp_path / "project"
    write_project(folder, UserData(own / "images", own / "annotations.json", unlabeled_images=own / "images"))
    project = Project.open(folder)
    with pytest.raises(SagecacheError, match="no ablation 'sage'. Known: none. A page can .* copy: ") as told:
        read_ablation(project, "sage")
    template = Path(told.value.fix.split("copy: ")[1].split(",")[0])
    assert template == Project.demo().folder / "ablations" / "sage.py"
    with pytest.raises(SagecacheError, match="no ablation 'mine'. Known: none. An ablation is a page abla"):
        read_ablation(project, "mine")

    left_out = ("floor =", "ceiling =", "    oracle=")
    lines = [line for line in template.read_text().splitlines() if not line.startswith(left_out)]
    (folder / "ablations").mkdir()
    (folder / "ablations" / "sage.py").write_text("\n".join(lines))
    arms = read_ablation(project, "sage").arms
    assert len(arms) == len(read_ablation(Project.demo(), "sage").arms) - 1 and "oracle" not in arms


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('recipe="stage0"', 'recipe="stage-0"', "arm 'start': no recipe 'stage-0'. did you mean 'stage0'"),
        ("views.num_strong", "view.num_strong", "arm 'wide': unknown key 'view.num_strong'. did you mean"),
        ("views.num_strong", "views.num_strung", "arm 'wide': unknown key 'views.num_strung'"),
        ('": 2}', '": 0}', "arm 'wide': num_strong is 0"),
        (', overrides={"views.num_strong": 2}', "", "'plain' and 'wide' are the same training"),
        ('control = "plain"', 'control = "plan"', "control: no arm 'plan'. did you mean 'plain'"),
        ('["plain", "wide"]', '["plain", "wild"]', "groups.views: no arm 'wild'. did you"),
        ('["plain", "wide"]', '["plain", "plain"]', "groups.views compares nothing"),
        ('control = "plain"', 'control = "plain"\nfloor = "start"', "the gap has two ends"),
        ("groups =", 'evidence = dict(drift=["no"])\ngroups =', "evidence.drift: no arm 'no'"),
        ('control = "plain"', 'control = "plain"\nseeds = 3', "unknown key 'seeds'"),
        ('asks="labels"', 'ask="labels"', "unknown key 'arms.start.ask'"),
    ],
)  # fmt: skip
def test_a_slip_is_told(project, old, new, told):
    write(project, old, new)
    with pytest.raises(SagecacheError, match="two_views.py") as caught:
        read_ablation(project, "two-views")
    assert told in str(caught.value)


def test_what_trains_no_student_is_no_arm(project):
    (project.folder / "fit.py").write_text('kind = "prior"\n')
    write(project, 'recipe="stage0"', 'recipe="fit"')
    with pytest.raises(SagecacheError, match="recipe 'fit' trains no student"):
        read_ablation(project, "two-views")


def test_an_unknown_page_names_the_known(project):
    with pytest.raises(SagecacheError, match="no ablation 'views'. did you mean 'two-views'"):
        read_ablation(project, "views")
