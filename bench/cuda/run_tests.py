"""Runs each native test of the GPU in a process of its own: one that breaks its context does not fail the others.

    python3 run_tests.py CUDA_TESTS LOG [--jobs 8] [--timeout 60] [--max-seconds 150] [--only TEXT|TEXT]
        [--prefix "compute-sanitizer --tool memcheck"] SOURCES…

LOG gets all output. Prints what failed, and the counts last; exits with 1 when something failed. Tests that the sources
have but this build does not (those of the emulator) are left out, those that the time does not reach are counted, as are
those that make no call that a tool could look at.
"""

import argparse
import concurrent.futures
import re
import shlex
import subprocess
import sys
import time

arguments = argparse.ArgumentParser()
arguments.add_argument("binary")
arguments.add_argument("log")
arguments.add_argument("sources", nargs="+")
arguments.add_argument("--jobs", type=int, default=8)
arguments.add_argument("--timeout", type=float, default=60)
arguments.add_argument("--max-seconds", type=float, default=1e9)
arguments.add_argument("--only", default="")
arguments.add_argument("--prefix", default="")
options = arguments.parse_args()

titles = []
for path in options.sources:
    text = open(path, encoding="utf-8").read()
    for match in re.finditer(r'^TEST\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+)\)', text, re.M):
        title = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', match[1])).replace('\\"', '"').replace("\\\\", "\\")
        if any(part in title for part in options.only.split("|")):
            titles.append(title)


start = time.monotonic()


def run(title):
    begin = time.monotonic()
    left = options.max_seconds - (begin - start)
    if left < 3:
        return title, "not reached", "", 0
    command = [*shlex.split(options.prefix), options.binary, title]
    limit = min(options.timeout, left)
    try:
        result = subprocess.run(command, capture_output=True, timeout=limit, check=False)
        output, status = result.stdout + result.stderr, result.returncode
    except subprocess.TimeoutExpired as error:
        output, status = error.stdout or b"", "timeout" if limit == options.timeout else "not reached"
    except OSError as error:
        output, status = f"    {error}".encode(), "not run"
    output = output.decode(errors="replace")
    if "0 passed, 0 failed" in output:
        status = "not built"
    if "terminated before first instrumented API call" in output:  # of compute-sanitizer: a test of the host alone
        status = "without a call"
    return title, status, output, time.monotonic() - begin


NOT_FAILED = ("not built", "not reached", "without a call")
counts, failed, slow = {}, [], []
with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool, open(options.log, "w", encoding="utf-8") as log:
    for title, status, output, seconds in pool.map(run, titles):
        print(f"== {title} ({seconds:.1f} s, exit {status})\n{output}", file=log, flush=True)
        slow.append((seconds, title))
        kind = "passed" if status == 0 else status if status in NOT_FAILED else "failed"
        counts[kind] = counts.get(kind, 0) + 1
        if kind == "failed":
            failed.append((title, status, output))
SIGNS = re.compile(r"^    |rror|Invalid|Uninit|Race reported|hazard|Barrier|terminate")
for i, (title, status, output) in enumerate(failed[:40]):
    print(f"FAIL {title} (exit {status})")
    lines = dict.fromkeys(line.strip("= ")[:150] for line in output.splitlines() if SIGNS.search(line))
    for line in list(lines)[: 4 if i < 10 else 1]:
        print(f"  {line}")
if len(failed) > 40:
    print(f"… and {len(failed) - 40} more")
print("slowest: " + ", ".join(f"{title[:40]} {seconds:.1f} s" for seconds, title in sorted(slow, reverse=True)[:3]))
summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: item[0] != "passed"))
print(f"tests: {summary or 'none'}; {time.monotonic() - start:.0f} s")
sys.exit(1 if failed or not titles else 0)
