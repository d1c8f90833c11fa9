"""The training model: a student, its EMA teacher(s), pseudo labels, and a list of terms.

A composition: every number is made by a small module of ``semi`` and ``priors`` that is tested alone.
Without terms it is plain supervised training with an EMA copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from sagecache.data.mixing import StrongMixing
from sagecache.data.style import StyleTransfer
from sagecache.data.targets import dequantise
from sagecache.geometry.affine import (
    compose,
    invert_affine,
    linear_scale,
    transform_points,
)
from sagecache.geometry.depth import Gain, gain_from_normals
from sagecache.geometry.distortion import bend_points
from sagecache.geometry.heatmap import probability, soft_argmax
from sagecache.mm.codecs import MapFrame
from sagecache.mm.outputs import head_maps, map_kind, network_maps
from sagecache.priors.diffusion import DiffusionPrior
from sagecache.priors.frames import labels_in_view, student_keypoints
from sagecache.project.recipe import TeacherSettings
from sagecache.semi.ema import (
    initialise_ema,
    measure_own_norm,
    ramp_up,
    require_different,
    update_ema,
    warm_decay,
)
from sagecache.semi.fusion import TeacherView
from sagecache.semi.hardness import JointHardness
from sagecache.semi.refresh import LabelTable
from sagecache.structures import Fate, PseudoLabels, UnlabeledBatch


class ViewPreprocessor(BaseDataPreprocessor):
    """Moves our view batches to the device; mmpose batches (with ``inputs``) go to the student's own."""

    def __init__(self, pose_preprocessor: nn.Module) -> None:
        super().__init__(non_blocking=True)
        self.pose = pose_preprocessor

    def forward(self, data: dict, training: bool = False) -> dict:
        if "inputs" in data:
            return self.pose(data, training)
        # mmengine would copy every label object, wherever it lies: 1 % of the demo's step on a CPU
        return data if self.device.type == "cpu" else self.cast_data(data)


class SemiPoseEstimator(BaseModel):
    """Student + EMA teacher + pseudo labels + terms.

    student: an mmpose top-down estimator. frame: of its maps.
    labeler: teacher maps -> PseudoLabels. terms: name -> (weight, module(UnlabeledBatch) -> TermOutput).
    prior: corrects poses for a gate with a teacher B. It is a part, so that it moves with the rest, but not
    state: it has a file of its own.
    teacher: how many EMA teachers there are, and how a second one, which sees the appearance view, differs.
    mixing: hides and exchanges limbs of strong views once the teacher has spoken. style: gives labeled images
    the look of unlabeled ones.
    The (first) EMA teacher is the network that validates.
    ``step`` is set by the training loop before each iteration; it drives ramp-ups and EMA warm-up.
    """

    def __init__(
        self,
        student: nn.Module,
        frame: MapFrame,
        labeler: nn.Module | None = None,
        terms: Mapping[str, tuple[float, nn.Module]] | None = None,
        *,
        prior: DiffusionPrior | None = None,
        ema_decay: float = 0.999,
        teacher: TeacherSettings | None = None,
        ramp_up_steps: int = 0,
        mixing: StrongMixing | None = None,
        style: StyleTransfer | None = None,
    ) -> None:
        super().__init__(data_preprocessor=ViewPreprocessor(student.data_preprocessor))
        teacher = teacher or TeacherSettings()
        self.student, self.flip = student, teacher.flip
        self.ema_teacher = initialise_ema(student)
        self.appearance, self.appearance_teacher = None, None
        if teacher.mode == "dual":
            self.appearance = appearance = teacher.appearance
            self.appearance_decay = ema_decay if appearance.decay is None else appearance.decay
            self.appearance_teacher = initialise_ema(student)
            own_norm = appearance.own_norm and measure_own_norm(self.appearance_teacher)
            require_different(ema_decay, self.appearance_decay, appearance.alternate, own_norm)
        self.labeler, self.prior = labeler, prior
        self.register_state_dict_post_hook(_drop_prior)
        self.register_load_state_dict_post_hook(_expect_no_prior)
        self.terms = nn.ModuleDict({name: term for name, (_, term) in (terms or {}).items()})
        self.term_weights = {name: weight for name, (weight, _) in (terms or {}).items()}
        self.ema_decay, self.ramp_up_steps = ema_decay, ramp_up_steps
        self.sigma, self.step = frame.sigma, 0
        self.last_labels: PseudoLabels | None = None  # of the last step, for those who log
        self.votes: Tensor | None = None  # fixed ones by unlabeled instance, set by the training
        self.table: LabelTable | None = None  # labels that stand between two refreshes, set by the training
        self.mixing, self.style = mixing, style
        self.hardness = None
        if mixing is not None and mixing.akm is not None:
            self.hardness = JointHardness(len(labeler.flip_indices))
        self.register_buffer("heatmap_from_input", frame.from_input, persistent=False)
        self.register_buffer("mirror", frame.mirror, persistent=False)

    # -- mmengine's entry points --------------------------------------------------------------
    def forward(self, labeled=None, unlabeled=None, inputs=None, data_samples=None, mode: str = "loss"):
        """mode 'loss' takes the two streams of a view batch; other modes take mmpose's batch."""
        if mode == "loss":
            return self.loss(labeled, unlabeled)
        return self.ema_teacher(inputs, data_samples, mode=mode)

    def train(self, mode: bool = True) -> SemiPoseEstimator:
        super().train(mode)
        self.ema_teacher.eval()  # the teacher's statistics are averaged, never measured
        if self.appearance_teacher is not None:
            self.appearance_teacher.eval()
            if mode and self.appearance.own_norm:
                measure_own_norm(self.appearance_teacher)
        return self

    @torch.no_grad()
    def update_ema(self, updates: int) -> None:
        """Once per optimiser step; ``updates`` counts the steps done before this one."""
        alternate = self.appearance is not None and self.appearance.alternate
        own = updates // 2 if alternate else updates  # steps that each of the two has taken
        if not alternate or updates % 2 == 0:
            update_ema(self.ema_teacher, self.student, warm_decay(self.ema_decay, own))
        if self.appearance is not None and (not alternate or updates % 2 == 1):
            decay = warm_decay(self.appearance_decay, own)
            update_ema(self.appearance_teacher, self.student, decay, buffers=not self.appearance.own_norm)

    # -- one step ------------------------------------------------------------------------------
    def loss(self, labeled: dict | None, unlabeled: dict | None) -> dict[str, Tensor]:
        """Supervised loss on labeled views, plus every term on the strong views of unlabeled images.

        The teacher speaks first, and the student sees both streams in one forward pass.
        """
        unlabeled = unlabeled if self.terms else None
        labels = self.last_labels = None if unlabeled is None else self.labels_of_step(unlabeled)
        views = [] if labeled is None else [self.labeled_images(labeled, unlabeled)]
        if unlabeled is not None:
            labels = _repeated(labels, unlabeled["strong"].shape[1])
            images, labels, covered = self.strong_images(unlabeled, labels)
            views.append(images)
        features = self.student.extract_feat(self.normalise(torch.cat(views)))
        # split rather than sliced: the gradient of each slice is a whole tensor, zeros elsewhere
        streams = list(zip(*(one.split([len(images) for images in views]) for one in features), strict=True))
        losses = {}
        if labeled is not None:
            samples, settings = labeled["data_samples"], self.student.train_cfg
            losses = self.student.head.loss(streams[0], samples, train_cfg=settings)
        if unlabeled is not None:
            heatmaps, _ = head_maps(self.student.head, streams[-1])
            batch = self.unlabeled_batch(heatmaps, unlabeled, labels, streams[-1][-1])
            losses |= self.term_losses(batch)
            if self.hardness is not None:
                self._remember_errors(batch, covered)
        return losses

    def labeled_images(self, labeled: dict, unlabeled: dict | None) -> Tensor:
        """(B, 3, H, W) uint8, some of them in the style of unlabeled ones."""
        if self.style is None or unlabeled is None:
            return labeled["image"]
        return self.style(labeled["image"], unlabeled["weak"])

    @torch.no_grad()
    def strong_images(
        self, unlabeled: dict, labels: PseudoLabels
    ) -> tuple[Tensor, PseudoLabels, Tensor | None]:
        """Strong views (B*M, 3, H, W) uint8, mixed; the labels (of each view) that remain; which joints
        (B*M, K) are covered.
        """
        images, num_strong = unlabeled["strong"].flatten(0, 1), unlabeled["strong"].shape[1]
        if self.mixing is None:
            return images, labels, None
        strong_from_image = unlabeled["strong_from_image"].flatten(0, 1)
        scale = unlabeled["bbox_scale"].repeat_interleave(num_strong)
        keypoints, distortion = transform_points(strong_from_image, labels.keypoints), _distortion(unlabeled)
        if distortion is not None:
            keypoints = bend_points(keypoints, distortion[0], (images.shape[-1], images.shape[-2]))
        mixed = self.mixing(
            images,
            keypoints,
            labels.confidence,
            labels.keep,
            linear_scale(strong_from_image) * scale,
            None if self.hardness is None else self.hardness.error,
            None if self.hardness is None else self.labeler.keypoint_filter.statistics.mean,
            num_strong,
        )
        left = ~mixed.dropped
        remaining = replace(labels, weights=labels.weights * left, places=labels.places * left)
        return mixed.images, remaining, mixed.covered

    @torch.no_grad()
    def _remember_errors(self, batch: UnlabeledBatch, covered: Tensor) -> None:
        """How far the student is from kept labels, by joint; hidden ones and those that left the view look
        hard and are not counted.
        """
        labels, student = batch.pseudo_labels, student_keypoints(batch, self.labeler.flip_indices)
        shown = labels_in_view(batch) & ~covered
        self.hardness.update(student, labels.keypoints, labels.keep & shown, batch.bbox_scale)

    def term_losses(self, batch: UnlabeledBatch) -> dict[str, Tensor]:
        """Weighted losses under ``loss_<term>``, and what terms and gate counted."""
        labels = batch.pseudo_labels
        by_b = ~labels.teacher_a & (labels.weights > 0).any(-1)
        logged = {
            "num_use_teacherA": labels.teacher_a.sum().float(),
            "num_use_teacherB": by_b.sum().float(),
            "num_unused": (~labels.teacher_a & ~by_b).sum().float(),  # refused, and nothing to learn from B
            "keep_mean": labels.keep.float().mean(),
            "confidence_mean": labels.confidence.mean(),
            "confidence_max": labels.confidence.max(),
            "plausibility_mean": labels.plausibility.mean(),
        }
        fates = torch.arange(len(Fate), device=labels.fate.device)
        shares = (labels.fate[..., None] == fates).float().mean((0, 1))
        logged |= {f"fate/{fate.name.lower()}": share for fate, share in zip(Fate, shares, strict=True)}
        ramp = ramp_up(self.step, self.ramp_up_steps)
        for name, term in self.terms.items():
            output = term(batch)
            logged[f"loss_{name}"] = ramp * self.term_weights[name] * output.loss
            logged |= {f"{name}_{key}": value for key, value in output.scalars.items()}
        return logged

    def unlabeled_batch(
        self, heatmaps: Tensor, unlabeled: dict, labels: PseudoLabels, features: Tensor | None = None
    ) -> UnlabeledBatch:
        """Collect what terms need. heatmaps, labels, features of the B*M strong views; M views an image."""
        num_strong = unlabeled["strong"].shape[1]

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(num_strong, dim=0)

        kind = map_kind(self.student.head)
        peaks = soft_argmax(probability(heatmaps, kind), self.sigma)  # (B*M, K, 2) heatmap px
        strong_from_image = unlabeled["strong_from_image"].flatten(0, 1)
        seen_first = "appearance_from_image" if "appearance" in unlabeled else "weak_from_image"
        image_from_teacher = invert_affine(repeat(unlabeled[seen_first]))
        to_map, from_map = self.heatmap_from_input, invert_affine(self.heatmap_from_input)
        targets, size = dequantise(unlabeled), (unlabeled["strong"].shape[-1], unlabeled["strong"].shape[-2])
        keypoints, distortion = transform_points(from_map, peaks), _distortion(unlabeled)
        if distortion is not None:
            keypoints = bend_points(keypoints, distortion[1], size)
        return UnlabeledBatch(
            student_heatmaps=heatmaps,
            heatmap_kind=kind,
            student_keypoints=keypoints,
            student_from_teacher=compose(to_map, strong_from_image, image_from_teacher, from_map),
            heatmap_from_strong=to_map,
            strong_from_image=strong_from_image,
            strong_size=size,
            target_from_image=repeat(unlabeled["target_from_image"]) if targets else strong_from_image,
            bbox_scale=repeat(unlabeled["bbox_scale"]),
            pseudo_labels=labels,
            targets={name: repeat(value) for name, value in targets.items()},
            step=self.step,
            gain=self._gain(targets, repeat),
            distortion=distortion,
            student_features=features,
        )

    @torch.no_grad()
    def _gain(self, targets: dict[str, Tensor], repeat: Callable[[Tensor], Tensor]) -> Gain | None:
        """Of depth maps that have normals beside them, where a term asks for it: once, for all views."""
        asked = any(getattr(term, "uses_gain", False) for term in self.terms.values())
        if not asked or not targets.keys() >= {"depth", "normal", "mask"}:
            return None
        gain = gain_from_normals(targets["depth"], targets["normal"], targets["mask"])
        return Gain(*map(repeat, gain))

    def labels_of_step(self, unlabeled: dict) -> PseudoLabels:
        """Of now, or of the last refresh."""
        return self.pseudo_labels(unlabeled) if self.table is None else self.table.look_up(unlabeled["index"])

    @torch.no_grad()
    def pseudo_labels(self, unlabeled: dict) -> PseudoLabels:
        """What the EMA teacher(s) make of the weak views: fused, filtered, gated."""
        known = self.votes is not None and "index" in unlabeled
        return self.labeler(
            self.teacher_views(unlabeled),
            self.heatmap_from_input,
            unlabeled["bbox_scale"],
            correct=None if self.prior is None else self.prior.correct,
            fixed_votes=self.votes[unlabeled["index"]] if known else None,
        )

    @torch.no_grad()
    def facing_votes(self, unlabeled: dict) -> Tensor:
        """Front or back of each person, (B,) in [-1, 1], by the EMA teacher(s) as they are now."""
        views = self.teacher_views(unlabeled)
        return self.labeler.votes(views, self.heatmap_from_input, unlabeled["bbox_scale"])

    @torch.no_grad()
    def teacher_views(self, unlabeled: dict) -> list[TeacherView]:
        """One forward pass of each teacher. The appearance view comes first: it is the upright crop."""
        names = ["appearance", "weak"] if "appearance" in unlabeled else ["weak"]
        networks = [self.ema_teacher] * len(names)
        if self.appearance_teacher is not None and "appearance" in unlabeled:
            networks[0] = self.appearance_teacher
        maps: dict[str, tuple[Tensor, ...]] = {}
        for network in dict.fromkeys(networks):
            own = [name for name, sees in zip(names, networks, strict=True) if sees is network]
            inputs = self.normalise(torch.cat([unlabeled[name] for name in own]))
            passes = torch.cat([inputs, inputs.flip(-1)]) if self.flip else inputs
            drawn, kind = network_maps(network, passes)
            plain = drawn.chunk(1 + self.flip)
            maps |= dict(zip(own, zip(*(one.chunk(len(own)) for one in plain), strict=True), strict=True))
        return [
            TeacherView(
                maps[name][0], kind, unlabeled[f"{name}_from_image"], *maps[name][1:], mirror=self.mirror
            )
            for name in names
        ]

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> network input, as the student's own preprocessor would make of BGR."""
        preprocessor = self.student.data_preprocessor
        if not preprocessor._channel_conversion:  # such a network was trained on BGR
            images = images.flip(1)
        if not preprocessor._enable_normalize:
            return images.float()
        return images.to(torch.float32, copy=True).sub_(preprocessor.mean).div_(preprocessor.std)


def _repeated(labels: PseudoLabels, num_strong: int) -> PseudoLabels:
    """The labels of each image once for each of its strong views."""
    if num_strong == 1:
        return labels
    values = ((one.name, getattr(labels, one.name)) for one in fields(labels))
    return PseudoLabels(**{name: value.repeat_interleave(num_strong, dim=0) for name, value in values})


def _distortion(unlabeled: dict) -> tuple[Tensor, Tensor] | None:
    """(forward, inverse) lattices of all strong views."""
    if "strong_distortion" not in unlabeled:
        return None
    return unlabeled["strong_distortion"].flatten(0, 1).unbind(1)


def _drop_prior(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: dict) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}prior.")]:
        del state[key]


def _expect_no_prior(_module: nn.Module, keys) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith("prior.")]
