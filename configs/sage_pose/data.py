"""Real data: put your paths here. They start at this folder; `sagecache init` writes such a page from yours.

Then: sagecache --project configs/sage_pose data check, precompute all, train stage0, train sage-pose.
"""

cache_root = "cache"
work_root = "work_dirs"
dataset_info = "coco"  # or mmpose's page of your skeleton

splits = dict(
    labeled=dict(images="data/labeled/images", annotations="data/labeled/keypoints.json"),
    # boxes: 'detect' runs the detector below; a COCO detection JSON serves as well (mmpose's bbox_file)
    unlabeled=dict(images="data/unlabeled/images", annotations="data/unlabeled/images.json", boxes="detect"),
    val=dict(images="data/val/images", annotations="data/val/keypoints.json"),
    test=dict(images="data/test/images", annotations="data/test/keypoints.json"),
)

crop = dict(padding=1.25)
teacher = dict(type="torchscript", files=dict(depth="checkpoints/depth.pt2", normal="checkpoints/normal.pt2"))
detector = dict(type="huggingface", path="checkpoints/rtdetr_v2_r50vd", device="cuda")
evaluation = dict(padding=1.25, area="annotation", pck_normaliser="max_side")
