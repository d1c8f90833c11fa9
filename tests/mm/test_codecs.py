from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmpose.codecs import UDPHeatmap
from mmpose.registry import KEYPOINT_CODECS

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import invert_affine, transform_points
from sagecache.geometry.heatmap import decode, probability
from sagecache.mm.codecs import (
    codec_of,
    decoded_from_input,
    flips_in_place,
    heatmap_from_input,
    label_gain,
    label_widths,
    map_sigma,
    map_size,
    mirror_in_heatmap,
)
from sagecache.mm.registry import build_student
from sagecache.project import Project
from sagecache.semi.fusion import fuse_flip

SIZES = dict(input_size=(96, 128), heatmap_size=(24, 32))
UDP = dict(type="UDPHeatmap", **SIZES, sigma=2)
MSRA = dict(type="MSRAHeatmap", **SIZES, sigma=2, unbiased=True)
SIMCC = dict(type="SimCCLabel", input_size=(96, 128), sigma=(4.9, 5.66), normalize=False)
LOSS = dict(type="KLDiscretLoss", use_target_weight=True, beta=10.0, label_softmax=True)


def page(codec: dict | None, loss: dict = LOSS, **test_cfg) -> dict:
    return dict(
        type="TopdownPoseEstimator", head=dict(type="Any", decoder=codec, loss=loss), test_cfg=test_cfg
    )


@pytest.mark.parametrize("codec", [UDP, MSRA])
def test_labels_of_mmpose_peak_where_our_matrix_puts_the_joint(codec):
    """Fitted to mmpose's own unquantised labels by least squares of their logarithm."""
    rng = np.random.default_rng(0)
    points = rng.uniform([30, 30], [65, 95], (17, 2)).astype(np.float32)
    maps = KEYPOINT_CODECS.build(codec).encode(points[None], np.ones((1, 17), np.float32))["heatmaps"]
    ours = transform_points(heatmap_from_input(codec), torch.from_numpy(points)).numpy()
    for drawn, (x, y) in zip(maps, ours, strict=True):
        rows, columns = np.nonzero(drawn > 0.05)
        squares = np.c_[columns, rows, np.ones(len(rows))]
        fit = np.linalg.lstsq(
            squares, np.log(drawn[rows, columns]) + (columns**2 + rows**2) / 8.0, rcond=None
        )[0]
        np.testing.assert_allclose(fit[:2] * 4, [x, y], atol=1e-3)


@given(st.sampled_from(["UDPHeatmap", "MSRAHeatmap", "SimCCLabel"]), st.floats(0, 1), st.floats(0, 1))
def test_the_mirrored_pass_is_undone_by_the_matrix_for_it(kind, x, y):
    codec = dict({"UDPHeatmap": UDP, "MSRAHeatmap": MSRA, "SimCCLabel": SIMCC}[kind])
    point, mirrored = torch.tensor([[[95 * x, 127 * y]], [[95 - 95 * x, 127 * y]]])
    to_map, mirror = heatmap_from_input(codec), mirror_in_heatmap(codec)
    expected, seen = transform_points(to_map, point), transform_points(to_map, mirrored)
    torch.testing.assert_close(transform_points(mirror, seen), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(mirror @ mirror, torch.eye(3), atol=1e-5, rtol=0)


def test_turning_the_maps_is_enough_for_all_but_msra_which_is_off_by_one_less_an_input_pixel():
    assert flips_in_place(UDP) and flips_in_place(SIMCC) and not flips_in_place(MSRA)
    assert flips_in_place(dict(MSRA, heatmap_size=(96, 128)))  # stride 1
    left = torch.tensor([23.0]) - mirror_in_heatmap(MSRA)[0, 2]
    torch.testing.assert_close(left, torch.tensor([1 / 4 - 1]))


@pytest.mark.parametrize("x", [30.0, 40.0, 61.5])
@pytest.mark.parametrize("codec", [dict(UDP, sigma=4 / 3), MSRA], ids=["udp", "msra"])
def test_perfect_maps_fuse_with_their_mirror_to_the_true_place(codec, x):
    """Turned alone, MSRA's pair would fuse to 38.5 at x = 40."""
    encoder = KEYPOINT_CODECS.build(codec)
    points = np.array([[x, 60.0], [95 - x, 60.0]], np.float32)[:, None]  # the joint, and it in the mirror
    plain, mirrored = (
        torch.from_numpy(encoder.encode(one[None], np.ones((1, 1), np.float32))["heatmaps"])[None]
        for one in points
    )
    mirror = None if flips_in_place(codec) else mirror_in_heatmap(codec)
    maps, turned = probability(plain, "heatmap"), probability(mirrored, "heatmap")
    keypoints, confidence = decode(fuse_flip(maps, turned, torch.tensor([0]), mirror), map_sigma(codec))
    back = transform_points(invert_affine(heatmap_from_input(codec))[None], keypoints)
    assert back[0, 0, 0].item() == pytest.approx(x, abs=0.1)
    assert confidence.item() > 0.87  # at sigma 4/3 a joint between four pixels reads .87
    if mirror is not None:
        keypoints, _ = decode(fuse_flip(maps, turned, torch.tensor([0])), map_sigma(codec))
        assert abs(keypoints[0, 0, 0].item() * 4 - x) > 1


@pytest.mark.parametrize(
    "codec, test_cfg, x, decoded",
    [
        (UDP, {}, 95, 96),
        (MSRA, {}, 95, 95),
        (MSRA, dict(flip_test=True, shift_heatmap=True), 40, 40.5),
        (MSRA, dict(flip_test=True), 40, 38.5),
        (SIMCC, {}, 40, 40),
        (SIMCC, dict(flip_test=True), 40, 40.25),
        (dict(SIMCC, simcc_split_ratio=1.0), dict(flip_test=True), 40, 40),
    ],
)
def test_what_mmpose_decodes_of_a_joint(codec, test_cfg, x, decoded):
    """The figures are worked out by hand; test_samples decodes with mmpose itself."""
    assert (decoded_from_input(codec, test_cfg) @ [x, 0, 1])[0] == pytest.approx(decoded)


def test_simcc_s_maps_are_a_quarter_of_the_input_from_corner_to_corner():
    assert map_size(SIMCC) == (24, 32) and map_sigma(SIMCC) == 2
    moved = transform_points(heatmap_from_input(SIMCC), torch.tensor([[95.0, 127.0]]))
    torch.testing.assert_close(moved, torch.tensor([[23.0, 31.0]]))


def test_label_widths_are_the_curvature_of_the_label_at_its_peak():
    gain = label_gain((4.9, 5.66), False, True, 10.0)
    widths = label_widths((192, 256), (4.9, 5.66), 2.0, gain)
    offsets = np.arange(-200, 201)
    for width, sigma, step in zip(widths, (4.9, 5.66), (47 / 191 / 2, 63 / 255 / 2), strict=True):
        label = 10 * np.exp(-((offsets * 0.01) ** 2) / (2 * sigma**2))  # hundredths of a bin
        curvature = -np.gradient(np.gradient(label, 0.01), 0.01)[200]
        assert width == pytest.approx(step / np.sqrt(curvature), rel=1e-3)
    assert label_gain(6.0, True, False, 10.0) == 1
    assert label_widths((192, 256), 6.0, 2.0, 1.0)[0] == pytest.approx(6 * 47 / 191 / 2)


SERVE = "UDPHeatmap with Gaussian maps, MSRAHeatmap and SimCCLabel with Gaussian labels serve"


@pytest.mark.parametrize(
    "codec, told",
    [
        (
            dict(UDP, type="RegressionLabel"),
            f"model.py: the head's decoder is RegressionLabel, and only {SERVE}",
        ),
        (dict(UDP, type="MegviiHeatmap"), f"decoder is MegviiHeatmap, and only {SERVE}.*type='UDPHeatmap'"),
        (dict(UDP, heatmap_type="combined"), f"UDPHeatmap of type 'combined', and only {SERVE}"),
        (
            dict(SIMCC, smoothing_type="standard"),
            f"SimCCLabel of smoothing_type 'standard', and only {SERVE}",
        ),
        (None, f"the head's decoder is none, and only {SERVE}"),
        ({**UDP, "heatmap_size": None}, "no 'heatmap_size'"),
        ({**MSRA, "heatmap_size": None}, "no 'heatmap_size'"),
        ({**SIMCC, "sigma": None}, "no 'sigma'"),
        (dict(UDP, input_size=[96]), r"the decoder's input_size is \[96\].*\(width, height\)"),
        (dict(MSRA, input_size=[96.0, 128.0]), r"the decoder's input_size is \[96.0, 128.0\]"),
        (dict(SIMCC, input_size=(96, 1)), r"the decoder's input_size is \(96, 1\)"),
        (dict(UDP, sigma=0), "the decoder's sigma is 0"),
        (dict(MSRA, sigma="a"), "the decoder's sigma is 'a'"),
        (dict(SIMCC, sigma=(4.9, 0)), r"the decoder's sigma is \(4.9, 0\).*bins"),
        (dict(SIMCC, simcc_split_ratio=0), "simcc_split_ratio is 0"),
        (dict(SIMCC, sigma=50.0), r"sigma 50.0 is 1.9 pixels.*1.7 pixels or less"),
        (dict(SIMCC, normalize=True), r"label_softmax leaves \d% of a SimCC label.*normalize=False"),
        (dict(MSRA, unbiased=False, sigma=1.25), "sigma 1.25.*one pixel off"),
        (dict(UDP, sigma=1.25), "sigma 1.25.*one pixel off"),
    ],
)
def test_a_codec_that_would_not_serve_is_refused(codec, told):
    decoder = codec and {key: one for key, one in codec.items() if one is not None}
    for use in (codec_of, build_student):
        with pytest.raises(SagecacheError, match=told):
            use(page(decoder))


def test_a_head_whose_outputs_mean_something_else_is_refused():
    with pytest.raises(SagecacheError, match="loss is JSDiscretLoss, and only KLDiscretLoss"):
        codec_of(page(SIMCC, dict(type="JSDiscretLoss")))
    with pytest.raises(SagecacheError, match="decoder is none"):
        codec_of(dict(type="TopdownPoseEstimator"))


@pytest.mark.parametrize(
    "codec, loss",
    [
        (dict(UDP, sigma=6), {}),  # Sapiens
        (MSRA, {}),
        (dict(MSRA, sigma=1.25), {}),  # drawn over the whole map: no edge is cut
        (dict(MSRA, unbiased=False), {}),
        (SIMCC, LOSS),
        (dict(SIMCC, input_size=(192, 256)), dict(LOSS, beta=1.0, label_beta=10.0)),  # RTMW
        (dict(type="SimCCLabel", input_size=(192, 256), sigma=6.0), {}),  # SimCC as published
        (dict(SIMCC, input_size=(768, 1024)), LOSS),
    ],
)
def test_the_codecs_that_serve_come_back_as_mmpose_takes_them(codec, loss):
    assert codec_of(page(codec, loss)) == codec
    KEYPOINT_CODECS.build(dict(codec))


def test_the_flip_test_of_each_codec_has_one_right_shift():
    with pytest.raises(SagecacheError, match="shift_heatmap would move.*shift_heatmap=False"):
        codec_of(page(UDP, shift_heatmap=True))
    with pytest.raises(
        SagecacheError, match=r"MSRAHeatmap at stride 4 0.75 pixels aside.*shift_heatmap=True"
    ):
        codec_of(page(MSRA, flip_test=True))
    stride_1 = dict(MSRA, heatmap_size=(96, 128))
    with pytest.raises(SagecacheError, match=r"stride 1 1 pixels aside.*shift_heatmap=False"):
        codec_of(page(stride_1, flip_test=True, shift_heatmap=True))
    codec_of(page(MSRA, flip_test=True, shift_heatmap=True))
    codec_of(page(MSRA, flip_test=False))  # says nothing of a shift that nobody makes
    codec_of(page(stride_1, flip_test=True))
    codec_of(page(SIMCC, flip_test=True))


def test_mmpose_draws_labels_aside_near_an_edge_unless_three_sigma_is_whole():
    """Why codec_of is strict: the peak of a label three pixels from the left edge."""
    peaks = []
    for sigma in (1.25, 4 / 3):
        codec = UDPHeatmap((96, 128), (24, 32), sigma=sigma)
        point = np.array([[[3.0 * 95 / 23, 16.0 * 127 / 31]]], np.float32)
        peaks.append(int(codec.encode(point, np.ones((1, 1), np.float32))["heatmaps"][0, 16].argmax()))
    assert peaks == [4, 3]


def test_the_demo_s_own_page_serves():
    codec = codec_of(Project.open().model)
    assert map_size(codec) == (24, 32) and map_sigma(codec) == 4 / 3 and flips_in_place(codec)
