"""mmpose's side of a batch: label encoding by the model's codec, and upright crops for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from sagecache.data.coco import read_image
from sagecache.data.dataset import CachedTargetDataset
from sagecache.data.sampling import StepDraws
from sagecache.data.views import warp_image
from sagecache.errors import SagecacheError
from sagecache.geometry.affine import crop_affine
from sagecache.mm.codecs import codec_of, decoded_from_input
from sagecache.mm.compat import activate
from sagecache.project.settings import EvaluationSettings
from sagecache.skeleton.definition import Skeleton
from sagecache.structures import Instance

activate()

from mmengine.structures import InstanceData, PixelData  # noqa: E402
from mmpose.datasets.transforms import GenerateTarget, PackPoseInputs  # noqa: E402
from mmpose.structures import PoseDataSample  # noqa: E402


class LabelEncoder:
    """Adds ``data_samples`` to a collated labeled batch: what the codec makes of its keypoints.

    Runs in the loader's workers. The codec is one that `codecs.codec_of` lets through.
    """

    def __init__(self, codec: dict, skeleton: Skeleton) -> None:
        self.generate = GenerateTarget(encoder=dict(codec))
        self.meta = dict(
            flip_indices=list(skeleton.flip_indices),
            dataset_keypoint_weights=np.ones(skeleton.num_keypoints, np.float32),
        )

    def __call__(self, batch: dict) -> dict:
        """batch: 'keypoints' (B, K, 2) view pixels, 'visible' (B, K), 'image' (B, 3, H, W)."""
        pairs = zip(batch["keypoints"].numpy(), batch["visible"].numpy(), strict=True)
        return {**batch, "data_samples": [self._encode(points, visible) for points, visible in pairs]}

    def _encode(self, points: np.ndarray, visible: np.ndarray) -> PoseDataSample:
        keypoints = points[None]
        results = self.generate(
            dict(
                self.meta,
                transformed_keypoints=keypoints,
                keypoints=keypoints,
                keypoints_visible=visible[None],
            )
        )
        sample, labels, maps = PoseDataSample(metainfo=self.meta), InstanceData(), PixelData()
        for key, name in results.get("label_mapping_table", PackPoseInputs.label_mapping_table).items():
            if key in results:
                labels.set_field(results[key], name)
        for key, name in results.get("field_mapping_table", PackPoseInputs.field_mapping_table).items():
            if key in results:
                maps.set_field(results[key], name)
        sample.gt_instance_labels, sample.gt_fields = labels.to_tensor(), maps.to_tensor()
        return sample


class EncodedSteps(Dataset):
    """A cached-target dataset whose labeled batches carry what the codec makes of them.

    In a loader's worker a SagecacheError is the item: raised there, torch would wrap its one line in two
    tracebacks. Whoever iterates such a loader lets each item through `unpacked`.
    """

    def __init__(self, steps: CachedTargetDataset, encode: LabelEncoder) -> None:
        self.steps, self.encode = steps, encode

    def __getitem__(self, draws: StepDraws) -> dict | SagecacheError:
        try:
            batch = self.steps[draws]
            return batch | {"labeled": self.encode(batch["labeled"])} if "labeled" in batch else batch
        except SagecacheError as error:
            if get_worker_info() is None:
                raise
            return error


def unpacked(item: dict | SagecacheError) -> dict:
    """The batch, or raise what the worker met."""
    if isinstance(item, SagecacheError):
        raise item
    return item


class EvaluationCrops(Dataset):
    """Upright crops of instances, where mmpose's GetBBoxCenterScale + TopdownAffine(use_udp=True) cut them.

    rules: padding, and whether pixels are sampled as training views are or as mmpose does.
    model: the model page; its codec's input_size is the crop's. Items: ``inputs`` (3, H, W) uint8 BGR,
    ``data_samples`` with what mmpose's ``predict`` needs to bring keypoints back to the image.
    """

    def __init__(
        self, instances: Sequence[Instance], model: Mapping, rules: EvaluationSettings, skeleton: Skeleton
    ) -> None:
        codec = codec_of(model)
        self.instances, self.size, self.rules = list(instances), tuple(codec["input_size"]), rules
        self.decoded_from_input = decoded_from_input(codec, model.get("test_cfg") or {})
        self.flip_indices = list(skeleton.flip_indices)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> dict:
        instance = self.instances[index]
        crop_from_image = crop_affine(instance.bbox, self.size, self.rules.padding)
        image = read_image(instance.path)
        if self.rules.sampling == "mmpose":
            crop = cv2.warpAffine(image, crop_from_image[:2], self.size, flags=cv2.INTER_LINEAR)
        else:
            crop = warp_image(image, crop_from_image, self.size)
        return dict(
            inputs=torch.from_numpy(np.ascontiguousarray(crop[..., ::-1].transpose(2, 0, 1))),
            data_samples=self._sample(instance, crop_from_image),
        )

    def _sample(self, instance: Instance, crop_from_image: np.ndarray) -> PoseDataSample:
        # mmpose computes decoded / input_size * input_scale + input_center - input_scale / 2
        image_from_decoded = np.linalg.inv(self.decoded_from_input @ crop_from_image)
        scale = np.diag(image_from_decoded)[:2] * self.size  # UDP: extent of the grown box, image pixels
        center = image_from_decoded[:2, 2] + scale / 2
        x, y, width, height = instance.bbox
        sample = PoseDataSample(
            metainfo=dict(
                img_id=instance.image_id,
                instance=instance.instance,
                annotation_id=instance.annotation_id,
                input_size=self.size,
                input_center=center,
                input_scale=scale,
                flip_indices=self.flip_indices,
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=np.array([[x, y, x + width, y + height]], np.float32),
            bbox_scores=np.array([instance.score], np.float32),
        )
        return sample


def upright_views(
    instances: Sequence[Instance], size: tuple[int, int], padding: float, appearance: bool = False
) -> dict[str, torch.Tensor]:
    """What `SemiPoseEstimator.pseudo_labels` takes, of upright crops in their own colours.

    size (width, height). Returns weak (B, 3, H, W) uint8 RGB, weak_from_image (B, 3, 3), bbox_scale (B,) =
    sqrt(w h), and with appearance the same crop as the second view of teachers that look at two.
    """
    matrices = [crop_affine(one.bbox, size, padding) for one in instances]
    crops = [warp_image(read_image(one.path), m, size) for one, m in zip(instances, matrices, strict=True)]
    batch = dict(
        weak=torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy()),
        weak_from_image=torch.from_numpy(np.stack(matrices)).float(),
        bbox_scale=torch.tensor([(one.bbox[2] * one.bbox[3]) ** 0.5 for one in instances]),
    )
    if appearance:
        batch |= dict(appearance=batch["weak"], appearance_from_image=batch["weak_from_image"])
    return batch


def coco_result(sample: dict) -> dict:
    """A prediction (``PoseDataSample.to_dict()``) as a COCO keypoint result, with its instance number.

    score = box score times mean keypoint score, as mmpose's CocoMetric.
    """
    predicted, truth = sample["pred_instances"], sample["gt_instances"]
    keypoints = np.asarray(predicted["keypoints"][0], dtype=np.float64)  # (K, 2)
    scores = np.asarray(predicted["keypoint_scores"][0], dtype=np.float64)  # (K,)
    x0, y0, x1, y1 = (float(value) for value in truth["bboxes"][0])
    return dict(
        image_id=int(sample["img_id"]),
        category_id=1,
        keypoints=np.c_[keypoints, scores].round(4).ravel().tolist(),
        score=float(scores.mean() * truth["bbox_scores"][0]),
        bbox=[x0, y0, x1 - x0, y1 - y0],
        instance=int(sample["instance"]),
        annotation_id=sample["annotation_id"],
    )
