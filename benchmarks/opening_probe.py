"""Run as ``python opening_probe.py STORE`` in a fresh process: imports the reader alone, prints JSON.

Not part of the benchmarks package's imports on purpose: what it measures is a process with nothing else.
"""

import json
import sys
import time

started = time.perf_counter()

from sagecache.store.reader import StoreReader  # noqa: E402

imported = time.perf_counter()


def memory() -> dict:
    """MiB: resident; proportional (shared pages divided among who maps them); unique to this process."""
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    lines = [line.split() for line in open("/proc/self/smaps_rollup")][1:]
    sizes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    kilobytes = {
        "rss": int(status["VmRSS"].split()[0]),
        "pss": sizes["Pss"],
        "uss": sizes["Private_Clean"] + sizes["Private_Dirty"],
    }
    return {name: value / 1024 for name, value in kilobytes.items()}


before = memory()
begin = time.perf_counter()
reader = StoreReader(sys.argv[1])
count = len(reader)
opened = time.perf_counter()
after = memory()
keys = [tuple(reader.ids[(k * 7919) % count].tolist()) for k in range(64)]
first = time.perf_counter()
reader.read_many(keys)
end = time.perf_counter()
result = {
    "instances": count,
    "import s": imported - started,
    "open s": opened - begin,
    "first batch s": end - first,
    "before": before,
    "open": after,
    "read": memory(),
}
print(json.dumps(result))
