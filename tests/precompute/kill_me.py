"""A process for tests to kill: makes a store and a detection file with toy networks that take their time."""

import sys
from pathlib import Path

from toy_teacher import ToyDetector, ToyTeacher, detect_job, geo_job, make_instances, write_images

from sagecache.precompute.runner import run_detect, run_geo


def main(images: Path, out: Path, pause: float) -> None:
    written = write_images(images, 12)
    written[4][1].write_bytes(b"not an image")
    print("started", flush=True)
    run_geo(geo_job(out / "geo", make_instances(written)), ToyTeacher(pause=pause))
    run_detect(detect_job(out, written), ToyDetector(pause=pause))
    print("finished", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
