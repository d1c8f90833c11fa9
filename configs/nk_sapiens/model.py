"""Sapiens' pose network: a ViT and two deconvolutions. Size and resolution are the two values at the top."""

arch = "sapiens_0.6b"  # or sapiens_0.3b, sapiens_1b, sapiens_2b
height, width = 768, 576  # or 1024, 768: multiples of 64; positions are resized from the checkpoint's

_channels = {"sapiens_0.3b": 1024, "sapiens_0.6b": 1280, "sapiens_1b": 1536, "sapiens_2b": 1920}
channels = _channels.get(arch) if isinstance(arch, str) else arch["embed_dims"]
codec = dict(
    type="UDPHeatmap",
    input_size=(width, height),
    heatmap_size=(width // 4, height // 4),
    # 6 at 1024 rows, as published; 3 sigma whole, or mmpose draws labels near two edges one map pixel off
    sigma=round(18 * height / 1024) / 3,
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
        patch_cfg=dict(padding=2),  # of Sapiens' pose networks
        with_cp=True,  # activations are computed again in the backward pass: slower, and far less memory
    ),
    head=dict(
        type="HeatmapHead",
        in_channels=channels,
        out_channels=17,
        deconv_out_channels=(768, 768),
        deconv_kernel_sizes=(4, 4),
        conv_out_channels=(768, 768),
        conv_kernel_sizes=(1, 1),
        loss=dict(type="KeypointMSELoss", use_target_weight=True),
        decoder=codec,
    ),
    train_cfg=dict(compute_acc=False),
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)
