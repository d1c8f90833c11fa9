"""How Hugging Face folders want their pixels: as their own processors; what is told where they don't say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from public_networks import glpn, sapiens2, save_folder, zoedepth

from sagecache.errors import SagecacheError
from sagecache.teachers import huggingface
from sagecache.teachers.registry import build_teacher

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
NORMAL = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], do_normalize=True)


def crops(width, height, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@torch.no_grad()
@pytest.mark.parametrize(
    "processor",
    [
        dict(image_processor_type="GLPNImageProcessor", size_divisor=32),  # normalises nothing
        dict(
            image_processor_type="DPTImageProcessor",
            do_rescale=False,
            image_mean=[123.675, 116.28, 103.53],
            image_std=[58.395, 57.12, 57.375],
        ),
        dict(image_processor_type="DPTImageProcessor", do_normalize=False, rescale_factor=1 / 127.5),
        dict(image_processor_type="DPTImageProcessor"),  # its own mean and std are .5
    ],
    ids=["glpn", "grey levels", "another scale", "silent"],
)
def test_pixels_are_those_of_the_folder_s_own_preprocessing(tmp_path, processor):
    network = glpn(transformers)
    folder = save_folder(network, tmp_path / "net", **processor)
    size = dict(input_size=(64, 96), map_size=(64, 96))
    teacher = build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size))
    made = transformers.AutoImageProcessor.from_pretrained(folder)(
        images=[Image.fromarray(one) for one in crops(64, 96)], do_resize=False, return_tensors="pt"
    )
    want = network(pixel_values=made["pixel_values"].float()).predicted_depth
    torch.testing.assert_close(teacher(crops(64, 96))["depth"][:, 0], want, atol=1e-5, rtol=1e-3)
    assert (teacher.spec.depth_kind, teacher.spec.unit) == ("metric", "m")


def test_a_crop_of_the_processor_is_not_asked_about(tmp_path):
    """MobileNet's cuts the middle out of black borders; its pixels are (x - 127.5) / 127.5."""
    said = dict(image_processor_type="MobileNetV2ImageProcessor", crop_size=dict(height=224, width=224))
    said |= dict(do_center_crop=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    folder = save_folder(glpn(transformers), tmp_path / "net", **said)
    settings = huggingface.resolve(huggingface.HuggingFaceSettings(files=dict(depth=str(folder))))
    assert settings.mean == settings.std == (127.5,) * 3


def test_preprocessing_that_is_no_shift_and_scale_is_told(tmp_path, monkeypatch):
    folder = save_folder(glpn(transformers), tmp_path / "net", **NORMAL)

    def swapped(images, **_):
        return dict(pixel_values=[one[..., ::-1].transpose(2, 0, 1) / 255 for one in images])

    monkeypatch.setattr(huggingface, "load_processor", lambda folder: swapped)
    with pytest.raises(SagecacheError, match="preprocessor_config.json: .*no shift and scale of RGB"):
        build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), input_size=(64, 96)))
    size = dict(input_size=(64, 96), map_size=(64, 96))
    said = dict(mean=(127.5,) * 3, std=(127.5,) * 3)  # in data.py, by who knows better
    build_teacher(dict(type="huggingface", files=dict(depth=str(folder)), **size, **said))


def test_a_folder_without_preprocessing_needs_mean_and_std(tmp_path):
    """ImageNet's would be a guess: ZoeDepth's are .5."""
    zoedepth(transformers).save_pretrained(tmp_path / "net")
    page = dict(type="huggingface", files=dict(depth=str(tmp_path / "net")), input_size=(64, 64))
    page["map_size"] = (64, 64)
    with pytest.raises(SagecacheError, match="net/preprocessor_config.json: is missing.*set mean and std"):
        build_teacher(page)
    with pytest.raises(SagecacheError, match="is missing"):
        build_teacher(page | dict(mean=(127.5,) * 3))
    said = build_teacher(page | dict(mean=(127.5,) * 3, std=(127.5,) * 3))
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    whole = save_folder(zoedepth(transformers), tmp_path / "whole", **half)
    assert said.fingerprint() == build_teacher(page | dict(files=dict(depth=str(whole)))).fingerprint()


def test_folders_that_want_other_pixels_do_not_share_a_teacher(tmp_path):
    files = {
        "depth": str(save_folder(sapiens2(transformers, "PointmapEstimation"), tmp_path / "d", **NORMAL)),
        "normal": str(
            save_folder(sapiens2(transformers, "NormalEstimation"), tmp_path / "n", image_mean=[0.5] * 3)
        ),
    }
    with pytest.raises(SagecacheError, match="normalised in different ways.*more_targets of data.py"):
        build_teacher(dict(type="huggingface", files=files))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"image_mean": [0.5', "is no JSON"),
        ("[1]", "is no JSON object"),
        ("[" * 100000, "is no JSON"),
        ('{"image_mean": "abc"}', "'image_mean' is abc, no list of three numbers"),
        ('{"image_mean": 0.5}', "'image_mean' is 0.5, no list"),
        ('{"image_std": [0.5, 0.5]}', r"'image_std' is \[0.5, 0.5\], no list"),
        ('{"image_std": [0.5, 0.5, "a"]}', "'image_std' is .*, no list"),
        ('{"image_std": [0.5, NaN, 0.5]}', "'image_std' is .*, no list"),
        ('{"image_std": [0.5, 0, 0.5]}', "'image_std' is .*, not above zero"),
        (f'{{"image_mean": [0.5, 0.5, 1{"0" * 400}]}}', "'image_mean' is .*, no list"),
    ],
    ids=lambda text: text[:30],
)
def test_preprocessing_that_says_nothing_of_use_is_one_line(tmp_path, text, told):
    (tmp_path / "config.json").write_text(
        json.dumps(dict(model_type="dpt", architectures=["DPTForDepthEstimation"]))
    )
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(SagecacheError, match=f"preprocessor_config.json: {told}") as caught:
        build_teacher(dict(type="huggingface", files=dict(depth=str(tmp_path))))
    assert caught.value.fix and len(str(caught.value)) < 400
