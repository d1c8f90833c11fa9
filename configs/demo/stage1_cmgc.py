"""Stage 1 with consistency and the geometry terms (cached depth and normals)."""

_base_ = "stage1_full.py"

semi = dict(gate=dict(teacher_b="none"), terms=dict(diffusion=dict(weight=0)))
