"""What CMGC compares with, on bodies that all lie in one tilted plane: their 3-D lengths are known."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
import torch
from dots import write_dots_project

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import crop_affine
from sagecache.mm.reference import check_store, labeled_reference, limb_edges
from sagecache.mm.terms import build_terms
from sagecache.project import Project, Recipe
from sagecache.project.recipe import RecipeData, SemiSettings
from sagecache.skeleton.definition import COCO17, Skeleton
from sagecache.store.codec import encode_row, failed_row
from sagecache.store.spec import UNREADABLE, StorePlan, build_fields
from sagecache.store.writer import StoreWriter

SIZE = (96, 128)
SLOPE = 1.0  # pixels of depth a pixel to the right
LEFT_WRIST = 9
ALL = ("depth", "normal", "mask")


def write_store(project: Project, split: str, outputs=ALL, kind="affine", failed: bool = False) -> None:
    """Targets of a split: the plane depth = SLOPE x, seen everywhere."""
    people = project.instances(split, "annotations")
    width, height = SIZE
    plan = StorePlan(
        ids=np.array([one.key for one in people], np.int64),
        image_sha256=np.zeros((len(people), 32), np.uint8),
        bbox=np.array([one.bbox for one in people]),
        target_from_image=np.stack([crop_affine(one.bbox, SIZE, 1.25) for one in people]),
        size=SIZE,
    )
    ramp = np.broadcast_to(SLOPE * np.arange(width, dtype=np.float32) / width, (1, height, width))
    normal = np.array([SLOPE, 0, -1]) / np.hypot(SLOPE, 1)
    full = {
        "depth": ramp.copy(),
        "normal": np.broadcast_to(normal[:, None, None], (3, height, width)).astype(np.float32),
        "mask": np.ones((1, height, width), bool),
    }
    fields = build_fields(outputs, kind, "crop widths")
    row = encode_row(fields, {name: full[name] for name in outputs})
    if failed:
        row = failed_row(fields, SIZE, UNREADABLE)
    about = {"split": split, "command": "sagecache precompute geo"}
    with StoreWriter.open(project.geometry_store(split), plan, fields, {"teacher": {}}, about, 8) as store:
        for shard in store.missing():
            store.commit(shard, [row] * len(store.rows(shard)))
        store.finish()


@pytest.fixture
def project(tmp_path) -> Project:
    """Five labeled bodies of one shape, each somewhere else."""
    project = Project.open(write_dots_project(tmp_path / "dots"))
    relabel(project, lambda keypoints: keypoints)
    return project


def relabel(project: Project, change) -> None:
    page = project.path(project.split("labeled").annotations)
    content = json.loads(page.read_text())
    first = content["annotations"][0]
    shape = np.reshape(first["keypoints"], (17, 3)) - [first["bbox"][0], 0, 0]
    for one in content["annotations"]:
        one["keypoints"] = change(shape + [one["bbox"][0], 0, 0]).ravel().tolist()
    page.write_text(json.dumps(content))


def reference(project: Project):
    return labeled_reference(project, ["labeled"], limb_edges(COCO17))


def test_the_reference_is_the_ratio_of_lengths_in_the_plane(project):
    write_store(project, "labeled")
    found = reference(project)
    one = project.instances("labeled")[0]
    ends = one.keypoints[:, :2][COCO17.limb_edges]
    dx, dy = (ends[:, 1] - ends[:, 0]).T
    expected = np.log(np.hypot(np.hypot(dx, SLOPE * dx), dy))
    np.testing.assert_allclose(found.centre, expected - expected.mean(), atol=0.05)
    assert (found.spread < 0.1).all()


def test_it_does_not_depend_on_how_many_bodies_are_decoded_at_a_time(project, monkeypatch):
    write_store(project, "labeled")
    whole = reference(project)
    monkeypatch.setattr("sagecache.mm.reference.BATCH", 2)
    torch.testing.assert_close(reference(project), whole)


def test_limbs_that_no_label_shows_are_named_in_a_warning(project, caplog):
    def hide_wrist(keypoints):
        keypoints[LEFT_WRIST, 2] = 1
        return keypoints

    relabel(project, hide_wrist)
    write_store(project, "labeled")
    with caplog.at_level(logging.WARNING):
        found = reference(project)
    (row,) = [i for i, edge in enumerate(COCO17.limb_edges.tolist()) if LEFT_WRIST in edge]
    assert found.spread.isinf().nonzero().flatten().tolist() == [row]
    assert [line for line in caplog.messages if "without a reference" in line][0].endswith(
        COCO17.limb_names[row]
    )


def test_labels_that_show_too_few_limbs_are_an_error(project):
    relabel(project, lambda keypoints: keypoints * [1, 1, 0.5])  # v = 1: labeled, not seen
    write_store(project, "labeled")
    with pytest.raises(SagecacheError, match="labeled: 0 of 12 limbs have a reference in 5 labeled bodies"):
        reference(project)


def test_labels_without_targets_name_the_command(project):
    write_store(project, "labeled", failed=True)
    command = re.escape(project.command("sagecache precompute geo --split labeled"))
    with pytest.raises(SagecacheError, match=f"no labeled body of 'labeled' has targets. Run '{command}'"):
        reference(project)


def test_labels_with_detected_boxes_are_refused(project):
    write_store(project, "labeled")
    page = project.folder / "data.py"
    page.write_text(page.read_text() + "\nsplits['labeled']['boxes'] = 'detect'\n")
    with pytest.raises(SagecacheError, match="split 'labeled' has detected boxes.*boxes='annotations'"):
        reference(Project.open(project.folder))


@pytest.mark.parametrize("term", ["cmgc_depth", "cmgc_normal"])
@pytest.mark.parametrize(
    "store, told",
    [
        (dict(kind="disparity"), "unlabeled/geo: this store's depth is a disparity.*weight 0"),
        (
            dict(outputs=("depth", "mask")),
            "unlabeled/geo: .*gave no normal.*precompute geo --split unlabeled",
        ),
        (dict(outputs=("normal", "mask")), "gave no depth"),
    ],
)
def test_a_store_that_would_silence_the_terms_is_refused(project, term, store, told):
    write_store(project, "labeled")
    write_store(project, "unlabeled", **store)
    recipe = Recipe(data=RecipeData(unlabeled="unlabeled"), semi=SemiSettings(terms={term: {}}))
    with pytest.raises(SagecacheError, match=told):
        build_terms(project, recipe, 1.25, None)


@pytest.mark.parametrize("kind", ["affine", "metric"])
def test_depth_that_grows_away_is_let_through(project, kind):
    write_store(project, "unlabeled", kind=kind)
    check_store(project, "unlabeled")


def test_arms_and_legs_are_tubes_and_the_trunk_is_not():
    tubes = {tuple(edge) for edge in limb_edges(COCO17, tubes=True).tolist()}
    names = [
        n for n, e in zip(COCO17.limb_names, COCO17.limb_edges.tolist(), strict=True) if tuple(e) in tubes
    ]
    assert len(names) == 8 and all("knee" in name or "elbow" in name for name in names)
    assert torch.equal(limb_edges(COCO17), torch.tensor(COCO17.limb_edges))


@pytest.mark.parametrize("tubes, told", [(False, "no limb"), (True, "no arm or leg")])
def test_a_skeleton_without_limbs_is_refused(tubes, told):
    points = Skeleton.from_dataset_info(
        dict(
            dataset_name="points",
            keypoint_info={i: dict(name=name, id=i, swap="") for i, name in enumerate("abc")},
            skeleton_info={},
            joint_weights=[1.0] * 3,
            sigmas=[0.1] * 3,
        )
    )
    with pytest.raises(SagecacheError, match=f"skeleton 'points' has {told}.*dataset_info"):
        limb_edges(points, tubes)
