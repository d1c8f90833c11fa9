"""The supervised arm: stage 0 plus as many steps as stage 1, on the labels alone, same augmentation."""

_base_ = "stage1_full.py"

batch = dict(unlabeled=0)
