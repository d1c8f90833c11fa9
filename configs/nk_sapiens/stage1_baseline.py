"""Stage 1, baseline: labels and consistency with the EMA teacher; needs no targets and no prior."""

_base_ = "stage1_full.py"

semi = dict(
    gate=dict(teacher_b="none"),
    terms=dict(diffusion=dict(weight=0), cmgc_depth=dict(weight=0), cmgc_normal=dict(weight=0)),
)
