"""Stage 0: fine-tune Sapiens' COCO pose network on the labels, with layer-wise decay of the learning rate.

An optimiser step has 32 images: 8 a pass, four passes. On n GPUs (torchrun) divide accumulative_counts by n.
"""

load_from = (
    "checkpoints/sapiens_0.6b_coco_best_coco_AP_812.pth"  # Sapiens' or mmpose's, or a Hugging Face folder
)
data = dict(labeled="labeled", val="val")
batch = dict(labeled=8, workers=8)

views = dict(strong=dict(rotation=40, scale=0.25, shift=0.08, flip=0.5, colour=0.2, blur=0.1, cutout=1))

train_cfg = dict(max_iters=25_000, val_interval=2_500, log_interval=50)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.1),
    constructor="LayerDecayOptimWrapperConstructor",  # biases, norms and positions have no weight decay
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
