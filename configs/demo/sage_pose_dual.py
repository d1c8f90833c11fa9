"""SAGE-Pose as first designed: two EMA teachers of different decays, one for geometry, one for appearance."""

_base_ = "sage_pose.py"

views = dict(appearance=dict(colour=0.2, blur=0.2, noise=6), num_strong=2)
batch = dict(unlabeled=16)  # times two strong views: as many images a step
semi = dict(teacher=dict(mode="dual", appearance=dict(decay=0.96)))
