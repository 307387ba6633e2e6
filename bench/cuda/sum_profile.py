"""Sums an `ncu --csv --metrics gpu__time_duration.sum` report by kernel: what a step's time goes to.

    python3 sum_profile.py REPORT.csv [--rows 30]
"""

import argparse
import csv
import re

arguments = argparse.ArgumentParser()
arguments.add_argument("report")
arguments.add_argument("--rows", type=int, default=30)
options = arguments.parse_args()

TO_MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
lines = open(options.report, encoding="utf-8", errors="replace").read().splitlines()
start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
totals = {}
for entry in csv.DictReader(lines[start:]) if start is not None else []:
    if "time_duration" not in (entry.get("Metric Name") or ""):
        continue
    name = re.sub(r"limbeck::cuda::|\(anonymous namespace\)::|<unnamed>::|void ", "", entry["Kernel Name"])
    name = re.sub(r"\(.*", "", name)[:70]
    duration = float(entry["Metric Value"].replace(",", "")) * TO_MICROSECONDS.get(entry["Metric Unit"], 1)
    grid = (entry.get("Grid Size") or "").replace(" ", "")
    count, time = totals.get((name, grid), (0, 0.0))
    totals[name, grid] = (count + 1, time + duration)
total = sum(time for _, time in totals.values()) or 1
print(f"{sum(count for count, _ in totals.values())} launches, {total / 1e3:.2f} ms")
for (name, grid), (count, time) in sorted(totals.items(), key=lambda item: -item[1][1])[: options.rows]:
    print(f"{time / 1e3:9.3f} ms {100 * time / total:5.1f} % {count:5d} x {time / count:9.1f} us  {name} {grid}")
