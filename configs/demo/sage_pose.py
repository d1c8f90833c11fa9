"""SAGE-Pose: one EMA teacher that looks at two views, two strong views, and the cached geometry to predict.

What the design asks for, and what is left out here: docs/sage-pose.md.
"""

load_from = "stage0"
data = dict(labeled="labeled", unlabeled="unlabeled", val="val")
batch = dict(labeled=16, unlabeled=32)

views = dict(
    # The teacher sees the upright crop and a turned one, each mirrored as well.
    appearance=dict(),
    weak=dict(rotation=30, flip=0.5),
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
    num_strong=2,
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
    teacher=dict(mode="single_two_view"),
    fusion=dict(temperature=0.5, on_disagreement="average"),
    pseudo_labels=dict(threshold=0.45),
    instances=dict(expected_oks=0.3, size=1.5, inverted=True),
    terms=dict(
        consistency=dict(weight=2.0, loss="kl", target="keypoints", normalise="all"),
        geometry=dict(weight=6.0),  # in the log then about as large as loss_kpt
        bone=dict(weight=0.05),
        topology=dict(weight=0.05),
        angle=dict(weight=0.02),
    ),
)
