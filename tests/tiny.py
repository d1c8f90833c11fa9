"""A project small enough for tests: some dozen rendered infants, the demo's networks, a few iterations."""

from __future__ import annotations

import shutil
from pathlib import Path

from sagecache.project import embedded_project

# With fewer labeled bodies, one flip of the teacher or coarser maps (where a joint is soon at an edge) hardly
# a limb has the reference that CMGC needs.
COUNTS = dict(labeled=16, unlabeled=12, val=4, test=3)


def write_tiny_project(folder: Path) -> Path:
    """The demo's pages with tiny splits of 128x128 images and all paths inside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in embedded_project().glob("*.py"):
        shutil.copyfile(page, folder / page.name)
    lines = ['cache_root = "cache"', 'work_root = "work_dirs"', "splits = dict("]
    for seed, (name, count) in enumerate(COUNTS.items()):
        boxes = "detect" if name == "unlabeled" else "annotations"
        lines.append(
            f'    {name}=dict(images="data/{name}/images", annotations="data/{name}/annotations.json", '
            f'boxes="{boxes}", min_score=0.05, '
            f'render=dict(look="target", count={count}, seed={seed}, size=(128, 128))),'
        )
    lines += [")", 'teacher = dict(type="demo", flip_test=True, map_size=(96, 128))']
    lines += ['detector = dict(type="demo")', "shard_size = 4"]
    (folder / "data.py").write_text("\n".join(lines) + "\n")
    return folder
