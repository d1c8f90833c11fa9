"""Stage 0: fine-tune the pretrained student on the few labels of the new domain."""

load_from = "demo"  # the committed student, which knows the source domain only
data = dict(labeled="labeled", val="val")
batch = dict(labeled=16)

_strong = dict(
    rotation=45, scale=0.3, shift=0.08, flip=0.5, colour=0.35, grey=0.2, blur=0.28, noise=8, cutout=2, fill=1
)
views = dict(strong=_strong)

train_cfg = dict(max_iters=200, val_interval=200)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1.5e-3, weight_decay=0.02))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.03, end=30),
    dict(type="CosineAnnealingLR", begin=30, eta_min_ratio=0.03),
]
ema_decay = 0.99
channels_last = True
