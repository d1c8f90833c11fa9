"""The oracle arm: stage 1's steps with the true labels of every unlabeled image. A ceiling, not a method."""

_base_ = "stage1_full.py"

data = dict(labeled=["labeled", "unlabeled_truth"])
batch = dict(labeled=48, unlabeled=0)
