"""``python -m benchmarks [--quick] [--only NAME ...] [--keep] [--folder DIR]``: measure, print, write."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks import report
from benchmarks.machine import describe
from benchmarks.material import Material
from benchmarks.results import Section
from benchmarks.scale import FULL, QUICK

HERE = Path(__file__).resolve().parent
# In the order of the report; each is a module with measure(material) -> Section.
NAMES = ("reading", "loading", "encoding", "writing", "precomputing", "opening", "training", "semi")


def main() -> None:
    arguments = _arguments()
    scale = QUICK if arguments.quick else FULL
    work = Path(tempfile.mkdtemp(prefix="run-", dir=_made(arguments.folder)))
    began, sections, seconds = time.perf_counter(), {}, {}
    try:
        material = Material(work, scale)
        for name in arguments.only or NAMES:
            print(f"{name} …", file=sys.stderr, flush=True)
            start = time.perf_counter()
            sections[name] = _measured(name, material)
            seconds[name] = time.perf_counter() - start
            print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)
        whole = arguments.only is None and not arguments.quick
        target = HERE if whole else Path(tempfile.mkdtemp(prefix="sagecache-bench-"))
        facts = describe(HERE.parent) | {"minutes": round((time.perf_counter() - began) / 60, 1)}
        text = report.write(target, sections, facts, seconds, quick=arguments.quick)
        print(text)
        print(f"written to {target}", file=sys.stderr)
    finally:
        if arguments.keep:
            print(f"kept {work}", file=sys.stderr)
        else:
            shutil.rmtree(work)
    if any(section.failed for section in sections.values()):
        raise SystemExit(1)


def _measured(name: str, material: Material) -> Section:
    """A section; one that fails says so in its place and leaves the others theirs."""
    try:
        return importlib.import_module(f"benchmarks.{name}").measure(material)
    except Exception:
        traceback.print_exc()
        return Section(name, f"**Failed:** {traceback.format_exc(limit=0).strip()}", failed=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one minute, rough figures, written elsewhere")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these parts, written elsewhere")
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / "work_dirs" / "bench", help="for the data"
    )
    parser.add_argument("--keep", action="store_true", help="leave the data where it is")
    return parser.parse_args()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
