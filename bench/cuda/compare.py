"""Libraries of several commits, timed in turns: milliseconds of each row, and what each commit gained on the one before.

    python3 compare.py RUNS [--json RESULT --commit OF_THIS --machine FILE]

RUNS: a folder of files NAME.ROUND.jsonl that bench_cuda wrote, names in the order of the commits. Of each row and name, the
median of the rounds' medians; a gain is the median over rounds of the round's ratio, for a GPU grows slower as it warms up,
and its range shows what is noise.
"""

import argparse
import collections
import datetime
import json
import pathlib
import statistics

arguments = argparse.ArgumentParser()
arguments.add_argument("runs", type=pathlib.Path)
arguments.add_argument("--json")
arguments.add_argument("--commit", default="unknown", help="that of the library named this")
arguments.add_argument("--machine", help="a file of `name: value` lines")
options = arguments.parse_args()

times = collections.defaultdict(dict)  # row → (name, round) → ms
names, errors = [], []
for path in sorted(options.runs.glob("*.jsonl")):
    name, number = path.stem.rsplit(".", 1)
    if name not in names:
        names.append(name)
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "error" in entry:
            errors.append(f"{entry['row']} of {name}: {entry['error']}")
        elif "ms" in entry:
            between = entry["variant"].partition(", ")[2]  # what the bench has set; the row alone is that of an engine
            times[entry["row"] + (f", {between}" if between else "")][name, int(number)] = entry["ms"]

result = []
for row, runs in times.items():
    for name, before in zip(names, [None, *names]):
        of_name = [ms for (by, _), ms in runs.items() if by == name]
        if not of_name:
            continue
        ratios = [runs[before, number] / ms for (by, number), ms in runs.items() if by == name and (before, number) in runs]
        entry = {"row": row, "library": name, "ms": statistics.median(of_name), "rounds": len(of_name)}
        if ratios:
            entry.update(gain=statistics.median(ratios), least=min(ratios), most=max(ratios))
        result.append(entry)
        gain = f"  {entry['gain']:.4f}  ({entry['least']:.4f} to {entry['most']:.4f})" if ratios else ""
        print(f"{row:34} {name:16} {entry['ms']:9.3f} ms{gain}")
for error in errors:
    print("failed:", error)
if options.json:
    machine = pathlib.Path(options.machine).read_text().splitlines() if options.machine else []
    whole = {
        "date": datetime.date.today().isoformat(),
        "commit": options.commit,
        "machine": dict(line.split(": ", 1) for line in machine if ": " in line),
        "rows": result,
        "errors": errors,
    }
    pathlib.Path(options.json).write_text(json.dumps(whole, indent=1) + "\n")
