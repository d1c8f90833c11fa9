"""The demo's student: one million parameters, 96x128 crops, 24x32 maps, a softmax over the cells."""

# 3 * sigma must be whole: otherwise mmpose draws labels near the left and top edges one map pixel off.
codec = dict(type="UDPHeatmap", input_size=(96, 128), heatmap_size=(24, 32), sigma=4 / 3, blur_kernel_size=5)

model = dict(
    type="TopdownPoseEstimator",
    data_preprocessor=dict(
        type="PoseDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(type="PoseNet", width=32),
    head=dict(
        type="SoftmaxHeatmapHead",
        in_channels=32,
        out_channels=17,
        deconv_out_channels=None,
        loss=dict(type="SpatialCrossEntropyLoss", use_target_weight=True),
        decoder=codec,
    ),
    train_cfg=dict(compute_acc=False),  # it would copy every heatmap to the host in every step
    test_cfg=dict(flip_test=True, flip_mode="heatmap", shift_heatmap=False),
)
