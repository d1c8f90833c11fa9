"""Stage 1 with consistency and the diffusion prior."""

_base_ = "stage1_full.py"

semi = dict(gate=dict(teacher_b="none"), terms=dict(cmgc_depth=dict(weight=0), cmgc_normal=dict(weight=0)))
