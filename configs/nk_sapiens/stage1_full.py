"""Stage 1, everything on: consistency with the EMA teacher, diffusion prior, depth and normals, hybrid gate.

An optimiser step has 32 labeled and 64 unlabeled images: 8 and 16 a pass, four passes. Units: max_iters,
schedulers and warm-up count passes; ramp_up and ema_decay optimiser steps.
"""

load_from = "stage0"
data = dict(labeled="labeled", unlabeled="unlabeled", val="val", on_missing="skip")
batch = dict(labeled=8, unlabeled=16, workers=8)

views = dict(
    weak=dict(rotation=15, scale=0.1, shift=0.04, flip=0.5),
    strong=dict(
        rotation=45,
        scale=0.3,
        shift=0.08,
        flip=0.5,
        colour=0.35,
        grey=0.2,
        blur=0.3,
        noise=8,
        cutout=2,
        fill=1,
    ),
    num_strong=1,
)

train_cfg = dict(max_iters=60_000, val_interval=4_000, log_interval=50)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.1),
    constructor="LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=0.85),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=4,
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, end=2_000),
    dict(type="CosineAnnealingLR", begin=2_000, eta_min_ratio=0.02),
]
ema_decay = 0.999
amp = True

semi = dict(
    ramp_up=1_500,
    pseudo_labels=dict(rule="adaptive", beta=1.0, limits=(0.2, 0.8), warm_up=1_000),
    gate=dict(teacher_b="diffusion"),
    terms=dict(
        # raw heatmaps of an MSE head: their distance is MSE's, see geometry/heatmap.log_probability
        consistency=dict(weight=1.0, loss="mse", target="heatmap", normalise="kept"),
        diffusion=dict(weight=0.02),
        cmgc_depth=dict(weight=0.02),
        cmgc_normal=dict(weight=0.02),
    ),
)
