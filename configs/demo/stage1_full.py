"""Stage 1, everything on: consistency with the EMA teacher, diffusion prior, depth and normals, hybrid gate.

The other stage-1 pages are this one with terms switched off.
"""

load_from = "stage0"
data = dict(labeled="labeled", unlabeled="unlabeled", val="val", on_missing="skip")
batch = dict(labeled=16, unlabeled=32)

views = dict(
    # The teacher sees the upright crop (and its mirror image); the student works harder.
    weak=dict(),
    strong=dict(
        rotation=45,
        scale=0.3,
        shift=0.08,
        flip=0.5,
        colour=0.35,
        grey=0.2,
        blur=0.28,
        noise=8,
        cutout=2,
        fill=1,
    ),
    num_strong=1,
)

train_cfg = dict(max_iters=450, val_interval=150)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1.5e-3, weight_decay=0.02))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.03, end=30),
    dict(type="CosineAnnealingLR", begin=30, eta_min_ratio=0.03),
]
ema_decay = 0.99
channels_last = True

semi = dict(
    ramp_up=50,
    pseudo_labels=dict(threshold=0.5),
    gate=dict(teacher_b="diffusion"),
    terms=dict(
        consistency=dict(weight=1.0, loss="kl", target="keypoints", normalise="all"),
        diffusion=dict(weight=0.2),
        cmgc_depth=dict(weight=0.2),
        cmgc_normal=dict(weight=0.2),
    ),
)
