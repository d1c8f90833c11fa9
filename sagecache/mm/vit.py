"""``models.vit`` as a backbone of mmpose configs, with the keywords of mmpretrain's VisionTransformer.

Stock pages of ViTPose and Sapiens name mmpretrain's and get this one (``mm.stock_pages``), so that Sapiens'
sizes, checkpointing and freezing are always there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sagecache.errors import SagecacheError
from sagecache.models import vit

# Keywords of mmpretrain's that choose among networks which neither ViTPose nor Sapiens use.
ONLY = dict(
    in_channels=3,
    out_indices=-1,
    drop_rate=0.0,
    qkv_bias=True,
    final_norm=True,
    out_type="featmap",
    with_cls_token=False,
    interpolate_mode="bicubic",
    layer_scale_init_value=0.0,
    pre_norm=False,
)


class VisionTransformer(vit.VisionTransformer):
    """images (B, 3, H, W) -> a tuple of one map (B, C, H / 16, W / 16).

    arch, img_size (height, width), patch_size, drop_path_rate, frozen_stages, with_cp: as in ``models.vit``.
    norm_cfg: ``eps`` is read. patch_cfg: ``padding`` is read; without it 0, as mmpretrain has it.
    init_cfg: dict(type='Pretrained', checkpoint=PATH), a file or a Hugging Face folder with at least the
    backbone, in any layout that ``models.public_weights`` knows.
    stock: other keywords of mmpretrain's, with the values that ONLY has. Raises SagecacheError.
    """

    def __init__(
        self,
        arch: str | Mapping[str, int] = "base",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        norm_cfg: Mapping[str, Any] | None = None,
        patch_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **stock: Any,
    ) -> None:
        for key, value in stock.items():
            if key not in ONLY:
                raise SagecacheError(f"unknown keyword '{key}' of the ViT", fix="Leave it out.")
            if value != ONLY[key]:
                raise SagecacheError(
                    f"a ViT with {key}={value!r} is not built here", fix=f"Leave it {ONLY[key]!r}."
                )
        super().__init__(
            arch,
            (img_size, img_size) if isinstance(img_size, int) else tuple(img_size),
            patch_size,
            _only(patch_cfg, "patch_cfg", "padding", 0),
            drop_path_rate,
            frozen_stages,
            with_cp,
            _only(norm_cfg, "norm_cfg", "eps", 1e-6),
        )
        self.init_cfg = init_cfg

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (super().forward(images),)

    def init_weights(self) -> None:
        """Read the weights that init_cfg names, if any."""
        if self.init_cfg is None:
            return
        if self.init_cfg.get("type") != "Pretrained":
            raise SagecacheError(
                f"init_cfg is {self.init_cfg!r}", fix="Only dict(type='Pretrained', checkpoint=…)."
            )
        from sagecache.mm.checkpoints import load_backbone

        load_backbone(self, Path(self.init_cfg["checkpoint"]))


def _only(config: Mapping[str, Any] | None, name: str, key: str, default: Any) -> Any:
    config = dict(config or {})
    value = config.pop(key, default)
    config.pop("type", None)
    if config:
        raise SagecacheError(f"{name} of a ViT has {', '.join(config)}", fix=f"Only '{key}' is read.")
    return value
