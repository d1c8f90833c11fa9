"""Every arm of the demo at equal steps: what consistency, the diffusion prior and the geometry terms add.

The figures that ``sagecache demo`` shows beside its own are this page's:
``sagecache ablate reference --json > configs/demo/reference.json``.
"""

control = "stage1-supervised"
floor = "stage1-supervised"
ceiling = "oracle"


def _arm(recipe, asks):
    return dict(recipe=recipe, asks=asks)


arms = {
    "stage0": _arm("stage0", "200 steps on the labels"),
    "stage1-supervised": _arm("stage1-supervised", "stage 0, then labels alone"),
    "stage1-baseline": _arm("stage1-baseline", "consistency with the EMA teacher"),
    "stage1-ddp": _arm("stage1-ddp", "consistency, diffusion prior"),
    "stage1-cmgc": _arm("stage1-cmgc", "consistency, depth and normals"),
    "stage1-ddp-cmgc": _arm("stage1-ddp-cmgc", "consistency, prior, depth and normals"),
    "stage1-full": _arm("stage1-full", "all of these, hybrid gate"),
    "oracle": _arm("oracle", "true labels of every unlabeled image"),
}
