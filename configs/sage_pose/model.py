"""ViTPose-B. Size and resolution are the two values at the top; any mmpose top-down model can stand here."""

arch = "vitpose_b"  # or vitpose_s, vitpose_l, vitpose_h
height, width = 256, 192  # or 768, 576: multiples of 64; positions are resized from the checkpoint's

_channels = {"vitpose_s": 384, "vitpose_b": 768, "vitpose_l": 1024, "vitpose_h": 1280}
channels = _channels.get(arch) if isinstance(arch, str) else arch["embed_dims"]
codec = dict(
    type="UDPHeatmap",
    input_size=(width, height),
    heatmap_size=(width // 4, height // 4),
    # 2 at 256 rows, as published; 3 sigma whole, or mmpose draws labels near two edges one map pixel off
    sigma=round(6 * height / 256) / 3,
)

model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(
        type="PoseDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type="VisionTransformer",
        arch=arch,
        img_size=(height, width),
        patch_cfg=dict(padding=2),
        drop_path_rate=0.3 if arch == "vitpose_b" else 0.1,
        with_cp=False,  # True: activations are computed again in the backward pass: slower, far less memory
    ),
    head=dict(
        type="HeatmapHead",
        in_channels=channels,
        out_channels=17,
        deconv_out_channels=(256, 256),
        deconv_kernel_sizes=(4, 4),
        loss=dict(type="KeypointMSELoss", use_target_weight=True),
        decoder=codec,
    ),
    train_cfg=dict(compute_acc=False),
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)
