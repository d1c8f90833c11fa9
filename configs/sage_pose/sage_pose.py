"""SAGE-Pose with the settings of its first implementation, corrected where they could not work.

Corrected: the threshold is mean - beta sd (beta 2 with a plus kept 2 %); confidence is 1 at a perfect peak
(the sum-normalised peak never reaches .04); the priors have a gradient; the EMA moves once for each
optimiser step, not for each of the eight micro-steps. 1,000 warm-up batches and floors are as they were.

Units: 40,000 iterations are as many batches and, eight to a step, 5,000 optimiser steps. train_cfg,
param_scheduler and pseudo_labels.warm_up count iterations; ramp_up and ema_decay optimiser steps.
"""

load_from = "stage0"
data = dict(labeled="labeled", unlabeled="unlabeled", val="val", on_missing="skip")
batch = dict(labeled=16, unlabeled=32, workers=8)

views = dict(
    appearance=dict(colour=0.1),
    weak=dict(rotation=30, scale=0.1, shift=0.04, flip=0.5),
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

train_cfg = dict(max_iters=40_000, val_interval=2_000, log_interval=50)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=8,
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=1_000),
    dict(type="CosineAnnealingLR", begin=1_000, eta_min_ratio=0.02),
]
ema_decay = 0.999

semi = dict(
    ramp_up=500,  # optimiser steps: a tenth of them
    teacher=dict(mode="single_two_view"),
    fusion=dict(temperature=0.5),
    pseudo_labels=dict(rule="adaptive", beta=2.0, limits=(0.2, 0.8), warm_up=1_000, min_keep=0.3),
    instances=dict(expected_oks=0.5, size=1.2, inverted=True),
    terms=dict(
        # raw heatmaps of an MSE head: their distance is MSE's, see geometry/heatmap.log_probability
        consistency=dict(weight=5.0, loss="mse", target="heatmap", normalise="kept"),
        # Not of the first implementation: what helped most in the demo, at a weight at which loss_geometry is
        # about loss_kpt in the log. An MSE head's loss is some thousandths. 0: no store is read.
        geometry=dict(weight=0.002, upsample=4),
        topology=dict(weight=0.02),
        bone=dict(weight=0.02),
        angle=dict(weight=0.01),
    ),
)
