"""Stage 1 with consistency, diffusion prior and geometry terms; teacher B stays out."""

_base_ = "stage1_full.py"

semi = dict(gate=dict(teacher_b="none"))
