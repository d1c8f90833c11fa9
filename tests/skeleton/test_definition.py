import pickle

import numpy as np
import pytest

from sagecache.errors import SagecacheError
from sagecache.skeleton import COCO17, Skeleton


def dataset_info(names, links, swaps=None):
    swaps = swaps or {}
    return dict(
        dataset_name="mine",
        keypoint_info={i: dict(name=n, id=i, swap=swaps.get(n, "")) for i, n in enumerate(names)},
        skeleton_info={i: dict(link=link) for i, link in enumerate(links)},
        joint_weights=[1.0] * len(names),
        sigmas=[0.05] * len(names),
    )


def mmpose_info(name):
    """A dataset_info as mmpose ships it, read without importing mmpose."""
    import importlib.util
    import runpy
    from pathlib import Path

    spec = importlib.util.find_spec("mmpose")
    if spec is None:
        pytest.skip("mmpose is not installed")
    folder = Path(spec.submodule_search_locations[0]) / ".mim" / "configs" / "_base_" / "datasets"
    return runpy.run_path(str(folder / f"{name}.py"))["dataset_info"]


def test_coco_is_what_mmpose_says():
    assert Skeleton.from_dataset_info(mmpose_info("coco")) == COCO17


def test_coco_is_what_pycocotools_says():
    from pycocotools.cocoeval import Params

    np.testing.assert_allclose(COCO17.sigmas, Params(iouType="keypoints").kpt_oks_sigmas, rtol=1e-12)


@pytest.mark.parametrize("name", ["mpii", "crowdpose", "halpe26", "coco_wholebody", "ap10k"])
def test_other_skeletons_of_mmpose_load(name):
    info = mmpose_info(name)
    skeleton = Skeleton.from_dataset_info(info)
    assert skeleton.num_keypoints == len(info["keypoint_info"])
    assert 0 < len(skeleton.limb_edges) < len(skeleton.edges)
    assert len(skeleton.angle_triplets) >= 4  # elbows and knees


def test_limbs_of_coco_leave_the_head_out():
    names = set(COCO17.limb_names)
    assert len(names) == 12
    assert not any(word in name for name in names for word in ("nose", "eye", "ear"))
    assert {"left_hip-right_hip", "left_shoulder-right_shoulder", "left_shoulder-left_hip"} <= names


def test_head_words_are_words():
    names = ("left_forearm", "R_Eye", "LeftEar", "face-12", "spearhead", "heads_up")
    skeleton = Skeleton("x", names, np.zeros((0, 2)), np.arange(6), np.ones(6))
    assert skeleton.is_head.tolist() == [False, True, True, True, False, False]


def test_mirrored_limbs_list_the_left_one_first():
    pairs = [tuple(COCO17.limb_names[i] for i in pair) for pair in COCO17.mirrored_limbs]
    assert len(pairs) == 5  # two of the arm, two of the leg, the side
    for left, right in pairs:
        assert left.replace("left", "right") == right
    joints = [tuple(COCO17.names[k] for k in pair) for pair in COCO17.mirrored_joints]
    assert len(joints) == 8
    assert all(left.replace("left", "right") == right for left, right in joints)


def test_left_comes_first_where_right_is_listed_first():
    names = ["right_knee", "left_knee", "right_ankle", "left_ankle"]
    swaps = dict(zip(names, ["left_knee", "right_knee", "left_ankle", "right_ankle"], strict=True))
    info = dataset_info(names, [(names[0], names[2]), (names[1], names[3])], swaps)
    skeleton = Skeleton.from_dataset_info(info)
    assert skeleton.mirrored_limbs.tolist() == [[1, 0]]
    assert skeleton.mirrored_joints.tolist() == [[1, 0], [3, 2]]


def test_angles_of_coco():
    triplets = {"-".join(COCO17.names[k].split("_")[1] for k in t) for t in COCO17.angle_triplets}
    assert triplets == {"elbow-shoulder-hip", "shoulder-elbow-wrist", "shoulder-hip-knee", "hip-knee-ankle"}
    assert len(COCO17.angle_triplets) == 8
    mirrored = {tuple(COCO17.flip_indices[t]) for t in COCO17.angle_triplets}
    assert mirrored == {tuple(t) for t in COCO17.angle_triplets}  # the ends keep their order


def test_laplacian_takes_the_mean_of_the_neighbours():
    points = np.random.default_rng(0).normal(size=(17, 2))
    for k, row in enumerate(COCO17.laplacian):
        near = [int(a if b == k else b) for a, b in COCO17.edges if k in (a, b)]
        np.testing.assert_allclose(row @ points, points[k] - points[near].mean(0), atol=1e-12)
    alone = Skeleton("dots", ("a", "b", "c"), [[0, 1]], [0, 1, 2], [0.1] * 3)
    assert alone.laplacian.tolist() == [[1, -1, 0], [-1, 1, 0], [0, 0, 0]]


def test_torso_joints():
    assert COCO17.torso_joints.tolist() == [[5, 6], [11, 12]]
    hand = Skeleton("hand", ("wrist", "thumb"), [[0, 1]], [0, 1], [0.1, 0.1])
    assert hand.torso_joints is None


def test_arrays_are_read_only_and_inputs_are_copied():
    edges = np.array([[0, 1]])
    skeleton = Skeleton("x", ("a", "b"), edges, [1, 0], [0.1, 0.1])
    edges[0, 0] = 1
    assert skeleton.edges.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        COCO17.sigmas[0] = 1


def test_equal_by_content_also_after_pickling():
    COCO17.limb_edges.sum()  # fills a cached property
    clone = pickle.loads(pickle.dumps(COCO17))
    assert clone == COCO17 and hash(clone) == hash(COCO17)
    other = Skeleton(COCO17.name, COCO17.names, COCO17.edges[:-1], COCO17.flip_indices, COCO17.sigmas)
    assert other != COCO17


def test_keys_may_be_strings_and_out_of_order_as_after_json():
    info = dataset_info(["a", "b"], [("a", "b")])
    info["keypoint_info"] = {"1": info["keypoint_info"][1], "0": info["keypoint_info"][0]}
    assert Skeleton.from_dataset_info(info).names == ("a", "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.pop("sigmas"), "lacks sigmas"),
        (lambda i: i.update(sigmas=[]), "sigmas has 0 entries for 3 joints"),
        (lambda i: i.update(sigmas=[1, 1, 0]), "3 positive numbers"),
        (
            lambda i: i["skeleton_info"].update({0: dict(link=("a", "bb"))}),
            r"unknown joint 'bb'.*did you mean",
        ),
        (lambda i: i["skeleton_info"].update({0: dict(link=("a",))}), r"skeleton_info\[0\]: needs link"),
        (lambda i: i["skeleton_info"].update({9: dict(link=("b", "a"))}), "listed twice"),
        (lambda i: i["keypoint_info"][0].update(swap="b"), "undo themselves|permutation"),
        (lambda i: i["keypoint_info"][0].update(name="b"), "unique"),
        (lambda i: i["keypoint_info"].update({7: i["keypoint_info"].pop(2)}), "numbered 0 to 2"),
        (lambda i: i["keypoint_info"].update(x={}), "keyed by joint number"),
        (lambda i: i["keypoint_info"][1].pop("name"), r"keypoint_info\[1\]: needs a name"),
        (lambda i: i.update(skeleton_info=[]), "must be a dict of dicts"),
    ],
)
def test_what_contradicts_itself_is_refused(change, message):
    info = dataset_info(["a", "b", "c"], [("a", "b"), ("b", "c")])
    change(info)
    with pytest.raises(SagecacheError, match=message):
        Skeleton.from_dataset_info(info)
