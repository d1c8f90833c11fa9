"""Infants with Sapiens: 20k labeled and 100k unlabeled images, frozen depth and normals. Put your paths here.

Then: sagecache --project configs/nk_sapiens data check, precompute all, train stage0, train stage1-full.
docs/real-data.md walks through it. The weights of Sapiens v1 are CC BY-NC 4.0: no commercial use of them, nor
of targets and students that come from them.
"""

cache_root = "cache"
work_root = "work_dirs"
dataset_info = "coco"

splits = dict(
    labeled=dict(images="data/labeled/images", annotations="data/labeled/keypoints.json"),
    # boxes: 'detect' runs the detector below; a COCO detection JSON serves as well (mmpose's bbox_file)
    unlabeled=dict(images="data/unlabeled/images", annotations="data/unlabeled/images.json", boxes="detect"),
    val=dict(images="data/val/images", annotations="data/val/keypoints.json"),
    test=dict(images="data/test/images", annotations="data/test/keypoints.json"),
)

crop = dict(padding=1.25)
teacher = dict(
    type="sapiens",
    files=dict(
        depth="checkpoints/sapiens_0.3b_render_people_epoch_100.pth",
        normal="checkpoints/sapiens_0.3b_normal_render_people_epoch_66.pth",
        mask="checkpoints/sapiens_0.3b_goliath_best_goliath_mIoU_7673_epoch_194.pth",
    ),
    mask="network",
    device="cuda",
    precision="bfloat16",
)
detector = dict(type="huggingface", path="checkpoints/rtdetr_v2_r50vd", device="cuda")
evaluation = dict(padding=1.25, area="annotation", pck_normaliser="max_side")
