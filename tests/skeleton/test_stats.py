import json
import os

import numpy as np
import pytest
from scipy import stats as scipy_stats

from sagecache.errors import SagecacheError
from sagecache.skeleton import COCO17, Skeleton
from sagecache.skeleton.stats import FORMAT, SkeletonStats, Summary, compute_stats


def bodies(rng, count=60):
    """Jittered copies of one body of different sizes, some joints not labeled."""
    base = rng.uniform(0, 1, (17, 2)) * [60, 120]
    size = rng.uniform(0.5, 3, (count, 1, 1))
    points = (base + rng.normal(0, 3, (count, 17, 2))) * size
    visible = rng.choice([0, 1, 2], (count, 17, 1), p=[0.2, 0.3, 0.5])
    bboxes = np.concatenate([np.zeros((count, 2)), size[:, 0] * [60, 120]], axis=1)
    return np.concatenate([points, visible], axis=2), bboxes


@pytest.fixture(scope="module")
def sample():
    keypoints, bboxes = bodies(np.random.default_rng(0))
    return (
        keypoints,
        bboxes,
        compute_stats(keypoints, bboxes, COCO17, provenance={"annotations_sha256": "ab"}),
    )


def test_limb_summary_against_a_slow_loop_and_scipy(sample):
    keypoints, bboxes, stats = sample
    for normaliser, size_of in (
        ("sqrt_area", lambda w, h: np.sqrt(w * h)),
        ("diagonal", lambda w, h: np.hypot(w, h)),
    ):
        summary = stats.limb(normaliser)
        for e, (a, b) in enumerate(COCO17.limb_edges):
            values = [
                np.linalg.norm(body[a, :2] - body[b, :2]) / size_of(*box[2:])
                for body, box in zip(keypoints, bboxes, strict=True)
                if body[a, 2] > 0 and body[b, 2] > 0
            ]
            assert summary.count[e] == len(values)
            assert summary.median[e] == pytest.approx(np.median(values))
            assert summary.mad[e] == pytest.approx(scipy_stats.median_abs_deviation(values))
            assert summary.mean[e] == pytest.approx(np.mean(values))
            assert summary.sd[e] == pytest.approx(np.std(values))
            for key, p in (("q01", 1), ("q05", 5), ("q95", 95), ("q99", 99)):
                assert getattr(summary, key)[e] == pytest.approx(scipy_stats.scoreatpercentile(values, p))


def test_angles_against_a_slow_loop(sample):
    keypoints, _, stats = sample
    for t, (a, v, b) in enumerate(COCO17.angle_triplets):
        values = []
        for body in keypoints:
            if (body[[a, v, b], 2] > 0).all():
                u, w = body[a, :2] - body[v, :2], body[b, :2] - body[v, :2]
                values.append(np.arccos(u @ w / np.linalg.norm(u) / np.linalg.norm(w)))
        assert stats.angles.count[t] == len(values)
        for key, p in (("q025", 2.5), ("median", 50), ("q975", 97.5)):
            assert getattr(stats.angles, key)[t] == pytest.approx(np.percentile(values, p), abs=1e-6)


def test_offsets_and_whole_bodies_against_a_slow_loop(sample):
    keypoints, bboxes, stats = sample
    scale = np.sqrt(bboxes[:, 2] * bboxes[:, 3])
    for k in range(17):
        near = [int(a if b == k else b) for a, b in COCO17.edges if k in (a, b)]
        values = [
            np.hypot(*(body[k, :2] - body[near, :2].mean(0))) / size
            for body, size in zip(keypoints, scale, strict=True)
            if (body[[k, *near], 2] > 0).all()
        ]
        assert stats.offsets.count[k] == len(values) > 10
        assert stats.offsets.q99[k] == pytest.approx(np.percentile(values, 99))
    sizes, upright = [], []
    for body, size in zip(keypoints, scale, strict=True):
        ratios = [
            np.hypot(*(body[a, :2] - body[b, :2])) / size / stats.limb().median[e]
            for e, (a, b) in enumerate(COCO17.limb_edges)
            if body[a, 2] > 0 and body[b, 2] > 0
        ]
        sizes += [np.sort(ratios)[(len(ratios) - 1) // 2]]
        head = [body[k, :2] for k in range(5) if body[k, 2] > 0]
        if head and (body[[5, 6, 11, 12], 2] > 0).all():
            middles = body[[5, 6], :2].mean(0), body[[11, 12], :2].mean(0)
            to_shoulders, to_hips = (np.hypot(*(np.mean(head, 0) - middle)) for middle in middles)
            upright.append(np.log(to_shoulders / to_hips))
    for row, values in enumerate((sizes, upright)):
        assert stats.body.count[row] == len(values) > 20
        assert stats.body.q01[row] == pytest.approx(np.percentile(values, 1))


def test_mirroring_all_bodies_turns_the_log_ratio_round(sample):
    keypoints, bboxes, stats = sample
    mirrored = keypoints[:, COCO17.flip_indices] * [-1, 1, 1]
    other = compute_stats(mirrored, bboxes, COCO17)
    np.testing.assert_allclose(other.log_ratio.median, -stats.log_ratio.median, atol=1e-12)
    np.testing.assert_allclose(other.log_ratio.q99, -stats.log_ratio.q01, atol=1e-12)
    np.testing.assert_allclose(other.offsets.q99, stats.offsets.q99[COCO17.flip_indices])
    np.testing.assert_allclose(other.body.mean, stats.body.mean)
    assert np.abs(stats.log_ratio.median).max() > 0.01


def test_lengths_are_free_of_scale(sample):
    keypoints, bboxes, stats = sample
    larger = compute_stats(keypoints * [7, 7, 1], bboxes * 7, COCO17)
    for name in stats.limbs:
        np.testing.assert_allclose(larger.limb(name).q99, stats.limb(name).q99)
    np.testing.assert_allclose(larger.offsets.q99, stats.offsets.q99)
    np.testing.assert_allclose(larger.body.q99, stats.body.q99)


def test_unlabeled_joints_have_no_influence(sample):
    keypoints, bboxes, stats = sample
    moved = keypoints.copy()
    moved[moved[..., 2] == 0, :2] = 9999
    assert compute_stats(moved, bboxes, COCO17, provenance=stats.provenance).as_dict() == stats.as_dict()


def test_rates_and_counts(sample):
    keypoints, _, stats = sample
    np.testing.assert_allclose(stats.labeled, (keypoints[..., 2] >= 1).mean(0))
    np.testing.assert_allclose(stats.visible, (keypoints[..., 2] == 2).mean(0))
    complete = sum((body[5:, 2] > 0).all() for body in keypoints)
    assert stats.counts == {"instances": 60, "complete": complete, "min_count": 10}


def test_too_few_samples_are_flagged_and_never_nan_in_the_file(tmp_path):
    keypoints, bboxes = bodies(np.random.default_rng(1), count=12)
    keypoints[:, 9, 2] = 0  # the left wrist is never labeled
    keypoints[:9, 16, 2] = 0  # the right ankle at most three times
    stats = compute_stats(keypoints, bboxes, COCO17)
    path = tmp_path / "stats.json"
    stats.save(path)

    def no_constant(name):
        raise AssertionError(name)

    content = json.loads(path.read_text(), parse_constant=no_constant)
    row = content["limbs"]["sqrt_area"]["left_elbow-left_wrist"]
    assert (row["count"], row["enough"], row["median"]) == (0, False, None)
    row = content["limbs"]["sqrt_area"]["right_ankle-right_knee"]
    assert row["enough"] is False and row["median"] > 0
    again = SkeletonStats.load(path)
    limb = COCO17.limb_names.index("left_elbow-left_wrist")
    assert np.isnan(again.limb().q99[limb]) and not again.limb().enough[limb]
    assert again.as_dict() == stats.as_dict()


def test_save_and_load_are_exact(sample, tmp_path):
    stats = sample[2]
    stats.save(tmp_path / "new" / "stats.json")
    again = SkeletonStats.load(tmp_path / "new" / "stats.json", COCO17)
    np.testing.assert_array_equal(again.limb("torso").sd, stats.limb("torso").sd)
    np.testing.assert_array_equal(again.offsets.q01, stats.offsets.q01)
    np.testing.assert_array_equal(again.body.q99, stats.body.q99)
    assert again.provenance == {"annotations_sha256": "ab"}
    assert os.listdir(tmp_path / "new") == ["stats.json"]  # no temporary file is left


def test_a_failing_write_leaves_the_old_file(sample, tmp_path, monkeypatch):
    path = tmp_path / "stats.json"
    path.write_text("old")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        sample[2].save(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["stats.json"]


def damaged(change):
    def apply(content):
        change(content)
        return json.dumps(content)

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: "{", "not readable as JSON"),
        (lambda c: "[]", f"not a file of format {FORMAT}"),
        (damaged(lambda c: c.update(version=99)), "has version 99, this program reads 2"),
        (damaged(lambda c: c.update(version=1)), "has version 1, this program reads 2.*stats --force"),
        (damaged(lambda c: c["offsets"].pop("nose")), r"rows \['nose'\] do not match"),
        (damaged(lambda c: c.pop("angles")), "is damaged: KeyError 'angles'"),
        (damaged(lambda c: c["limbs"]["torso"].popitem()), "do not match the skeleton"),
        (damaged(lambda c: c["limbs"]["torso"]["left_hip-right_hip"].update(q99=None)), "has no value"),
        (damaged(lambda c: c["limbs"]["torso"]["left_hip-right_hip"].update(count="x")), "is damaged"),
        (damaged(lambda c: c["skeleton"].update(sigmas=[1])), "17 positive numbers"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused(sample, tmp_path, spoil, message):
    path = tmp_path / "stats.json"
    path.write_text(spoil(sample[2].as_dict()))
    with pytest.raises(SagecacheError, match=message) as error:
        SkeletonStats.load(path)
    assert str(path) in str(error.value) and "precompute stats" in str(error.value)


def test_a_missing_file_and_another_skeleton_are_named(sample, tmp_path):
    with pytest.raises(SagecacheError, match="are missing.*sagecache precompute stats"):
        SkeletonStats.load(tmp_path / "none.json")
    sample[2].save(tmp_path / "stats.json")
    other = Skeleton("coco", COCO17.names, COCO17.edges[:-2], COCO17.flip_indices, COCO17.sigmas)
    with pytest.raises(SagecacheError, match="another skeleton: edges differ"):
        SkeletonStats.load(tmp_path / "stats.json", other)


def test_bad_input_is_refused(sample):
    keypoints, bboxes, stats = sample
    with pytest.raises(SagecacheError, match=r"not \(N, 17, 3\)"):
        compute_stats(keypoints[:, :5], bboxes, COCO17)
    with pytest.raises(SagecacheError, match="finite"):
        compute_stats(keypoints * np.nan, bboxes, COCO17)
    with pytest.raises(SagecacheError, match="no labeled person"):
        compute_stats(keypoints[:0], bboxes[:0], COCO17)
    with pytest.raises(SagecacheError, match="did you mean 'sqrt_area'"):
        stats.limb("sqrt_areas")


def test_a_body_without_limbs_has_empty_summaries():
    face = Skeleton("face", ("nose", "left_eye"), [[0, 1]], [0, 1], [0.1, 0.1])
    stats = compute_stats(np.ones((3, 2, 3)), np.ones((3, 4)), face)
    assert stats.limb().median.shape == (0,) and stats.angles.count.shape == (0,)
    assert stats.offsets.count.tolist() == [3, 3] and stats.body.count.tolist() == [0, 0]


def test_summary_of_constants():
    summary = Summary.of(np.full((20, 2), 3.0))
    assert summary.median.tolist() == [3, 3] and summary.sd.tolist() == [0, 0] and summary.enough.all()
