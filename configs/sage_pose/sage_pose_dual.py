"""SAGE-Pose as designed: two EMA teachers, two harder strong views, four unlabeled images a label."""

_base_ = "sage_pose.py"

batch = dict(labeled=16, unlabeled=64)
views = dict(
    appearance=dict(colour=0.3, blur=0.3, noise=6),
    weak=dict(rotation=15, scale=0.15, shift=0.05, flip=0.5),
    strong=dict(randaugment=2, magnitude=0.5),
    num_strong=2,
)
ema_decay = 0.999
semi = dict(
    ramp_up=500,  # optimiser steps, a tenth of all; the design says 5 to 10 epochs
    teacher=dict(mode="dual", appearance=dict(decay=0.996)),
    fusion=dict(temperature=1.0, on_disagreement="drop"),
    pseudo_labels=dict(beta=1.0, limits=(0.3, 0.9), align=True),
    instances=dict(expected_oks=0.7),
    coupling=1.0,
    mixing=dict(akm=dict(), cutmix=0.5),
    style=dict(fda=0.25, colour=0.25),
    terms=dict(
        consistency=dict(weight=1.0),
        topology=dict(weight=0.05),
        bone=dict(weight=0.05),
        angle=dict(weight=0.02),
    ),
)
