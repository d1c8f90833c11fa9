"""What a body is and how it is measured; numpy only."""

from sagecache.skeleton.definition import COCO17, Skeleton

__all__ = ["COCO17", "Skeleton"]
