"""Stage 0: fine-tune a pretrained student on the labels."""

load_from = None  # a ViTPose checkpoint: mmpose's, the first one's, or a Hugging Face folder; ours too
data = dict(labeled="labeled", val="val")
batch = dict(labeled=32, workers=8)

views = dict(strong=dict(rotation=40, scale=0.25, shift=0.08, flip=0.5, colour=0.2, blur=0.1, cutout=1))

train_cfg = dict(max_iters=6_000, val_interval=1_000, log_interval=50)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=500),
    dict(type="CosineAnnealingLR", begin=500, eta_min_ratio=0.02),
]
