"""From settings to jobs: what a fingerprint says of boxes, which images are looked at, what is stale."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import pytest
from dots import change_labels, write_dots_project

from sagecache.cli import jobs
from sagecache.errors import SagecacheError
from sagecache.mm.terms import TERMS
from sagecache.precompute.jobs import RunOptions
from sagecache.precompute.plan import CropRule
from sagecache.precompute.runner import run_detect, run_geo, run_stats
from sagecache.priors.diffusion_fit import FitConfig, fit, labels_sha256
from sagecache.project import Project
from sagecache.project.recipe import TERM_NEEDS
from sagecache.teachers.registry import build_detector, build_teacher


@pytest.fixture
def folder(tmp_path):
    return write_dots_project(tmp_path / "mine")


def edit(folder, old: str, new: str) -> Project:
    page = folder / "data.py"
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, new))
    return Project.open(folder)


def test_labels_of_another_skeleton_are_not_trained_on(folder):
    path = folder / "data" / "labeled" / "annotations.json"
    content = json.loads(path.read_text())
    content["categories"][0]["keypoints"] = [f"paw_{k}" for k in range(17)]
    path.write_text(json.dumps(content))
    project = Project.open(folder)
    with pytest.raises(SagecacheError, match="labeled/annotations.json: its keypoints .paw_0, paw_1"):
        jobs.require_fresh(project, project.recipe("stage0")[0])


def test_the_crop_rule_is_the_page_s(folder):
    assert jobs.crop_rule(Project.open(folder)) == CropRule(padding=1.25, border="replicate")
    changed = edit(folder, "shard_size = 4", 'shard_size = 4\ncrop = dict(padding=1.5, border="constant")')
    assert jobs.crop_rule(changed) == CropRule(padding=1.5, border="constant")


def test_a_detection_job_sees_every_image_of_the_list_in_order(folder):
    project = Project.open(folder)
    labels = folder / "data" / "unlabeled" / "annotations.json"
    content = json.loads(labels.read_text())
    content["images"].reverse()
    content["annotations"] = []
    labels.write_text(json.dumps(content))
    job = jobs.detect_job(project, "unlabeled")
    assert [image_id for image_id, _ in job.images] == [201, 202, 203, 204]
    assert all(path.is_file() and int(path.stem) == image_id for image_id, path in job.images)
    assert job.result == folder / "cache" / "unlabeled" / "detections.json"


def test_a_geometry_job_names_its_split_and_the_command_that_makes_it(folder):
    project = Project.open(folder)
    job = jobs.geo_job(project, "val")
    assert job.root == folder / "cache" / "val" / "geo" and job.shard_size == 4
    assert [one.key for one in job.instances] == [(301, 0), (301, 1), (302, 0)]
    assert job.attributes["split"] == "val" and job.attributes["command"].endswith(
        "precompute geo --split val"
    )


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        ([], "holds no person with score >= min_score 0.3. See data.py's detector"),
        ([dict(score=0.2), dict(score=0.1)], r"min_score 0.3 .2 below it, the best 0.2.. Lower"),
        ([dict(score=0.9, bbox=[1, 2, 0, 60])], "0.3 whose box has an area.*data check --split val"),
        ([dict(score=0.9, category_id=17)], "no box of category_id 1 .person.: its 1 are of category_id 17"),
    ],
)
def test_detections_without_a_person_are_named_with_what_left_nobody(folder, boxes, told):
    project = edit(folder, "val=dict(", 'val=dict(boxes="found.json", ')
    records = [dict(image_id=301, category_id=1, bbox=[1, 2, 50, 60]) | box for box in boxes]
    (folder / "found.json").write_text(json.dumps(records))
    with pytest.raises(SagecacheError, match=f"found.json, split val: .*{told}"):
        jobs.geo_job(project, "val")


def test_annotations_without_a_person_are_named_with_what_left_nobody(folder):
    labels = folder / "data" / "val" / "annotations.json"
    content = json.loads(labels.read_text())
    for one in content["annotations"]:
        one["category_id"] = 3
    labels.write_text(json.dumps(content))
    told = "annotations.json, split val: holds no person with keypoints: 3 annotations have category_id 3"
    with pytest.raises(SagecacheError, match=f"{told}.*data check --split val"):
        jobs.geo_job(Project.open(folder), "val")


def test_statistics_are_of_the_labeled_split_s_annotations(folder):
    project = edit(folder, "labeled=dict(", 'labeled=dict(boxes="detect", ')
    job = jobs.stats_job(project)
    assert len(job.instances) == 5 and all(one.keypoints is not None for one in job.instances)
    both = edit(folder, "shard_size = 4", 'shard_size = 4\nstats_splits = ("labeled", "val")')
    assert len(jobs.stats_job(both).instances) == 8


def test_what_is_stale_is_named_old_to_new_and_what_fits_is_not(folder):
    project = Project.open(folder)
    teacher = build_teacher(project.data.teacher)
    run_geo(jobs.geo_job(project, "val"), teacher)
    assert jobs.stale_parts(project, "val", teacher) == ""
    wider = edit(folder, "shard_size = 4", "shard_size = 4\ncrop = dict(padding=1.5)")
    assert "crop.padding: 1.25 -> 1.5" in jobs.stale_parts(wider, "val", teacher)
    other = build_teacher(dict(type="demo", flip_test=True))
    assert "flip_test: false -> true" in jobs.stale_parts(project, "val", other)
    labels = folder / "data" / "val" / "annotations.json"
    labels.write_text(labels.read_text() + " ")
    assert jobs.stale_parts(project, "val", teacher) == ""  # boxes are compared one by one, not as a file


def test_steps_refuse_stores_of_other_settings_and_imported_ones_before_anything_is_computed(
    folder, monkeypatch
):
    project = Project.open(folder)
    jobs.require_fresh_steps(project, ["labeled", "val"])  # nothing is there
    run_geo(jobs.geo_job(project, "val"), build_teacher(project.data.teacher))
    jobs.require_fresh_steps(project, ["labeled", "val"])
    wider = edit(folder, "shard_size = 4", "shard_size = 4\ncrop = dict(padding=1.5)")
    with pytest.raises(SagecacheError, match="crop.padding: 1.25 -> 1.5.*precompute geo --split val --force"):
        jobs.require_fresh_steps(wider, ["labeled", "val"])
    jobs.require_fresh_steps(wider, ["labeled"])
    monkeypatch.setattr(jobs, "is_imported", lambda fingerprint: True)
    with pytest.raises(SagecacheError, match="split val: the targets were imported.*--split val --force"):
        jobs.require_fresh_steps(project, ["val"])


def test_training_is_refused_stale_statistics_and_stale_targets(folder):
    project = Project.open(folder)
    teacher = build_teacher(project.data.teacher)
    for split in ("labeled", "unlabeled"):
        run_geo(jobs.geo_job(project, split), teacher)
    run_stats(jobs.stats_job(project))
    supervised, _ = project.recipe("stage0")
    plain, _ = project.recipe("stage1-full")
    geometric, _ = project.recipe("stage1-full", {"semi.terms.cmgc_depth.weight": 0.1})
    for recipe in (supervised, plain, geometric):
        jobs.require_fresh(project, recipe)

    wider = edit(folder, "shard_size = 4", "shard_size = 4\ncrop = dict(padding=1.5)")
    jobs.require_fresh(wider, plain)  # it reads no targets
    with pytest.raises(SagecacheError, match="other settings: .*crop.padding.*geo --split labeled --force"):
        jobs.require_fresh(wider, geometric)

    change_labels(folder)
    jobs.require_fresh(project, supervised)
    with pytest.raises(SagecacheError, match="skeleton_stats.json.*sagecache .*precompute stats --force"):
        jobs.require_fresh(project, plain)
    jobs.require_fresh(project, replace(plain, batch=supervised.batch))  # no unlabeled images, no statistics


def test_statistics_of_a_former_version_are_refused_with_the_one_command_that_makes_them_anew(folder):
    project = Project.open(folder)
    run_stats(jobs.stats_job(project))
    written = json.loads(project.stats_file.read_text())
    former = {key: value for key, value in written.items() if key not in ("offsets", "body")}
    project.stats_file.write_text(json.dumps(former | {"version": 1}))
    plain, _ = project.recipe("stage1-full")
    told = (
        "skeleton_stats.json: has version 1, this program reads 2.*Run: sagecache .*precompute stats --force$"
    )
    with pytest.raises(SagecacheError, match=told):
        jobs.require_fresh(project, plain)
    run_stats(jobs.stats_job(project), RunOptions(force=True))
    assert json.loads(project.stats_file.read_text()) == written
    jobs.require_fresh(project, plain)


@pytest.mark.parametrize(
    "name, overrides, told",
    [
        (
            "stage1-full",
            {"semi.gate.treshold_confidence": 0.5},
            "unknown key 'semi.gate.treshold_confidence'",
        ),
        ("stage1-full", {"semi.terms.consistancy": {}}, "unknown term 'consistancy'.*did you mean 'consis"),
        (
            "stage1-full",
            {"semi.terms.cmgc_depth.edges": [[0, 1]]},
            "unknown key 'semi.terms.cmgc_depth.edges'",
        ),
        ("ddp-prior", {"prior.stepps": 5}, "unknown key 'prior.stepps'. Did you mean 'steps'"),
        ("ddp-prior", {"prior.seed": 5}, "prior.seed.*The recipe's own `seed` counts"),
    ],
)
def test_names_in_a_recipe_s_sections_are_checked_before_anything_is_made(name, overrides, told):
    recipe, _ = Project.demo().recipe(name, overrides)
    with pytest.raises(SagecacheError, match=told):
        jobs.check_recipe(recipe)


def test_every_term_is_known_with_what_it_needs():
    assert set(TERM_NEEDS) <= set(TERMS)
    for name in Project.demo().recipe_names():
        jobs.check_recipe(Project.demo().recipe(name)[0])


DETECTOR = 'detector = dict(type="demo")'


@pytest.mark.parametrize("split", ["val", "unlabeled", "labeled"])
def test_boxes_of_another_detector_are_refused_wherever_they_are_read(folder, split):
    project = edit(folder, f"{split}=dict(", f'{split}=dict(boxes="detect", min_score=0.0, ')
    run_detect(jobs.detect_job(project, split), build_detector(project.data.detector))
    jobs.require_fresh_boxes(project, split)
    jobs.geo_job(project, split)
    supervised, _ = project.recipe("stage0")
    plain, _ = project.recipe("stage1-full")
    geometric, _ = project.recipe("stage1-full", {"semi.terms.cmgc_depth.weight": 0.1})

    changed = edit(folder, DETECTOR, 'detector = dict(type="demo", score=0.5)')
    refused = f"boxes.*detector.rule.score: 0.05 -> 0.5.*precompute detect --split {split} --force"
    with pytest.raises(SagecacheError, match=refused):
        jobs.geo_job(changed, split)
    run_stats(jobs.stats_job(changed))
    readers = dict(val=(supervised, plain, geometric), unlabeled=(plain, geometric), labeled=(geometric,))
    for recipe in (supervised, plain, geometric):
        with pytest.raises(SagecacheError, match=refused) if recipe in readers[split] else nullcontext():
            jobs.require_fresh(changed, recipe)
    jobs.geo_job(changed, split, boxes=project.detections(split))  # a trial's file: its maker looked at it
    back = edit(folder, ", score=0.5)", ")")
    jobs.require_fresh_boxes(back, split)


def test_boxes_of_another_list_of_images_are_refused_and_another_s_boxes_taken(folder):
    project = edit(folder, "val=dict(", 'val=dict(boxes="detect", ')
    run_detect(jobs.detect_job(project, "val"), build_detector(project.data.detector))
    labels = folder / "data" / "val" / "annotations.json"
    content = json.loads(labels.read_text())
    content["images"].append(dict(id=399, file_name="399.png"))
    labels.write_text(json.dumps(content))
    with pytest.raises(SagecacheError, match="images.count: 2 -> 3"):
        jobs.require_fresh_boxes(project, "val")
    own = edit(folder, 'boxes="detect"', f'boxes="{project.detections("val")}"')
    jobs.require_fresh_boxes(own, "val")


def test_training_is_refused_a_prior_of_other_labels_and_warned_of_other_settings(folder, caplog):
    (folder / "ddp_prior.py").write_text('kind = "prior"')
    project = Project.open(folder)
    run_stats(jobs.stats_job(project))
    with_prior, _ = project.recipe("stage1-full", {"semi.terms.diffusion.weight": 0.1})
    page = project.recipe("ddp-prior")[0]
    instances = jobs.prior_instances(project, page)
    bodies = [replace(instances[0], keypoints=one.keypoints) for one in instances for _ in range(2)]
    prior, _ = fit(
        np.array([one.keypoints for one in bodies], np.float32),
        project.skeleton,
        FitConfig(steps=2, width=8, blocks=1),
        provenance={"keypoints_sha256": labels_sha256(instances, project.skeleton)},
    )
    prior.save(project.prior_file)
    jobs.require_fresh(project, with_prior)
    assert ("fitted with other settings" in caplog.text) == (prior.provenance["fit"] != asdict(FitConfig()))
    caplog.clear()
    prior.provenance["fit"] = asdict(FitConfig())
    prior.save(project.prior_file)
    jobs.require_fresh(project, with_prior)
    assert not caplog.text
    prior.provenance["keypoints_sha256"] = labels_sha256(instances[:-1], project.skeleton)
    prior.save(project.prior_file)
    with pytest.raises(SagecacheError, match="ddp_prior.*other labels.*train ddp-prior"):
        jobs.require_fresh(project, with_prior)
