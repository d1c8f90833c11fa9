"""The embedded default: rendered infants. Every split is drawn on first use by `sagecache data synth`.

Paths start at the folder in which the command runs.
"""

cache_root = "cache/demo"
work_root = "work_dirs/demo"
dataset_info = "coco"


def _rendered(name, boxes="annotations", **render):
    folder = f"{cache_root}/data/{name}"
    return dict(
        images=f"{folder}/images",
        annotations=f"{folder}/annotations.json",
        boxes=boxes,
        render=dict(**render),
    )


splits = dict(
    labeled=_rendered("labeled", look="target", count=24, seed=101),
    unlabeled=_rendered("unlabeled", look="target", count=1800, seed=102, boxes="detect"),
    val=_rendered("val", look="target", count=200, seed=103),
    test=_rendered("test", look="target", count=600, seed=2026),  # never used for tuning
    source=_rendered("source", look="source", count=3200, seed=105, geometry=False),
    # The unlabeled images with their true keypoints: for the oracle arm and for measuring only.
    unlabeled_truth=_rendered("unlabeled", look="target", count=1800, seed=102),
)

crop = dict(padding=1.25)
# Maps twice as fine as the network's: on coarser ones hardly a joint lies clear of the outline, and the
# geometry terms, which ask for that, keep few limbs.
teacher = dict(type="demo", flip_test=True, map_size=(96, 128))
detector = dict(type="demo")
shard_size = 256
evaluation = dict(padding=1.25, area="bbox53", pck_normaliser="diagonal")
