"""SAGE-Pose as first designed: two EMA teachers that differ, two strong views, all filters and mixing."""

_base_ = "sage_pose.py"

batch = dict(unlabeled=16)  # times two strong views: half as many images a step as sage_pose has
views = dict(appearance=dict(colour=0.2, blur=0.2, noise=6), weak=dict(rotation=15, scale=0.1), num_strong=2)
semi = dict(
    teacher=dict(mode="dual", appearance=dict(decay=0.96)),
    pseudo_labels=dict(rule="adaptive", beta=0.5, limits=(0.3, 0.8)),
    instances=dict(expected_oks=0.3, size=1.2, inverted=True),
    coupling=1.0,
    mixing=dict(akm=dict(), cutmix=0.5),
    terms=dict(topology=dict(weight=0.05), bone=dict(weight=0.05), angle=dict(weight=0.02)),
)
