"""No labels in the step: what the unlabeled images alone add to stage 0."""

_base_ = "sage_pose.py"

batch = dict(labeled=0)
