"""The ablations of SAGE-Pose, a question each, at equal steps and with the same strong views.

Arms are recipes with a few keys changed. The arms of a group differ from its first one in what is asked.
"""

control = "consistency"
floor = "supervised"
ceiling = "oracle"


def _arm(recipe, asks, overrides=None):
    return dict(recipe=recipe, asks=asks, overrides=overrides or {})


arms = dict(
    supervised=_arm("stage1-supervised", "labels alone, as many steps"),
    consistency=_arm("stage1-baseline", "one EMA teacher, one strong view, fixed threshold"),
    two_views=_arm("stage1-baseline", "two strong views of each image", {"views.num_strong": 2}),
    three_views=_arm("stage1-baseline", "three strong views of each image", {"views.num_strong": 3}),
    all_joints=_arm("stage1-baseline", "no joint is filtered out", {"semi.pseudo_labels.threshold": 0.0}),
    oracle=_arm("oracle", "true labels of every unlabeled image"),
)


def _group(asks, *arms):
    return dict(asks=asks, arms=arms)


groups = dict(
    views=_group("Do more strong views teach more?", "consistency", "two_views", "three_views"),
    filter=_group("Is the filter on joints worth having?", "consistency", "all_joints"),
)

evidence = dict(stability=["consistency", "two_views", "three_views"])
