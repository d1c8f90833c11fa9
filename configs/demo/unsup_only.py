"""No labels in the step: what the unlabeled images alone add to stage 0. A probe, not a method."""

_base_ = "sage_pose.py"

batch = dict(labeled=0)
