"""Our rows and PyTorch's side by side, against the bars and against what the hardware allows.

    python3 table.py LINES… [--json RESULT --commit C --seed S --machine FILE] [--all]

LINES: files that bench_cuda, bench_cuda_ops and peers.py wrote. Rows that were measured more than once (ours are, before
and after PyTorch's) are joined: the median of their medians. The floor of a row is the larger of its operations over the
measured rate of products and its bytes over the measured rate of copies.
"""

import argparse
import datetime
import json
import statistics
import subprocess

arguments = argparse.ArgumentParser()
arguments.add_argument("lines", nargs="*")
arguments.add_argument("--json")
arguments.add_argument("--commit", default="unknown")
arguments.add_argument("--seed", type=int, default=1)
arguments.add_argument("--machine", help="a file of `name: value` lines")
arguments.add_argument("--all", action="store_true", help="every variant of PyTorch, not the best alone")
options = arguments.parse_args()

LINEAR = 12 * 768 * 768 * 12  # weights of GPT-2 124M's products
VOCAB = 50257


def training_flops(tokens, width, layers, length, vocab):
    """Forward and backward: 6 a weight and token; causal attention counts half of its square."""
    return tokens * (6 * (12 * width * width * layers + vocab * width) + 6 * layers * length * width)


def forward_flops(tokens, width, layers, length, vocab=0):
    return training_flops(tokens, width, layers, length, vocab) / 3


def update_bytes(parameters):
    return 38 * parameters  # AdamW with the bf16 copy 30, norm 4, zeroing 4


# Row: operations and bytes of a batch, bar over PyTorch, absolute bar (of the row's value). Each side takes the batch that
# suits it; what was measured are rows with -B and the batch behind the name.
BATCHED = {
    "train": (lambda batch: (training_flops(batch * 1024, 768, 12, 1024, VOCAB), update_bytes(124e6)), 1.1, 500e3),
    "extract-T128": (lambda batch: (forward_flops(batch * 128, 768, 12, 128), 4 * batch * 128 * 768), 1.2, 1.4e6),
    "extract-T1024": (lambda batch: (forward_flops(batch * 1024, 768, 12, 1024), 4 * batch * 1024 * 768), 1.2, 1.4e6),
    "kd": (
        lambda batch: (
            forward_flops(batch * 512, 768, 12, 512, VOCAB) + training_flops(batch * 512, 256, 4, 512, VOCAB),
            update_bytes(16e6),
        ),
        1.5, None,
    ),
}
# Row: operations, bytes, bar over PyTorch, absolute bar.
ROWS = {
    "sequence-sampled": (training_flops(25600, 128, 2, 50, 8193), update_bytes(128.4e6), 2, None),
    "sequence-full": (training_flops(25600, 128, 2, 50, 100_000), update_bytes(13.2e6), 2, None),
    "interpolate": (0, 12 * 124_439_808, None, None),
    "rank": (2 * 512 * 64 * 1_000_000, 2 * 64 * 1_000_000, 2, None),
    "request": (0, 2 * 64 * 1_000_000, None, 60),
    "request-js": (0, 2 * 64 * 1_000_000, None, 120),
    "topk-10": (0, 2 * 64 * 1_000_000, None, None),
    "topk-100": (0, 2 * 64 * 1_000_000, None, None),
}
for length in (1024, 2048, 4096):
    flops = 2 * 16384 * 12 * length * 64
    ROWS[f"attention-T{length}-forward"] = (flops, 16384 * 768 * 8, 0.9, 0.9 * 229)
    ROWS[f"attention-T{length}-both"] = (3.5 * flops, 16384 * 768 * 8 * 3.5, 0.9, 0.9 * 192)


def read_lines():
    measured, errors, versions = {}, [], {}
    for path in options.lines:
        try:
            text = open(path, encoding="utf-8").read()
        except OSError as error:
            errors.append((path, str(error)))
            continue
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("row") == "versions":
                versions |= {k: v for k, v in entry.items() if k in ("torch", "cuda", "gpu")}
            elif entry.get("error"):
                errors.append((f"{entry['by']} {entry['row']} [{entry['variant']}]", entry["error"]))
            elif entry.get("value") is not None:
                measured.setdefault(entry["row"], {}).setdefault((entry["by"], entry["variant"]), []).append(entry)
    return measured, errors, versions


def join(entries):
    """Trials of one variant."""
    first = dict(entries[0])
    first["value"] = statistics.median(entry["value"] for entry in entries)
    if all("ms" in entry for entry in entries):
        first["ms"] = statistics.median(entry["ms"] for entry in entries)
        first["min"], first["max"] = min(e["min"] for e in entries), max(e["max"] for e in entries)
        first["rounds"] = sum(entry["rounds"] for entry in entries)
    return first


def is_lower_better(unit):
    return unit in ("us", "ms")


def number(value):
    if value is None:
        return "-"
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def best_of(entries):
    if not entries:
        return None
    pick = min if is_lower_better(entries[0]["unit"]) else max
    return pick(entries, key=lambda entry: entry["value"])


def main():
    measured, errors, versions = read_lines()
    for entries in measured.pop("check-student", {}).values():
        print(f"transformers opens what was saved: logits differ by {entries[-1]['value']:.2g} (bar 1e-4)")
    rows = {
        row: {
            by: [join(entries) for (who, _), entries in variants.items() if who == by] for by in ("limbeck", "torch")
        }
        for row, variants in measured.items()
    }

    def ceiling(row, otherwise):
        values = [entry["value"] for side in rows.get(row, {}).values() for entry in side]
        return max(values) if values else otherwise

    gemm, copy = ceiling("ceiling-gemm-bf16", None), ceiling("ceiling-copy", None)
    print(f"ceilings: bf16 products {number(gemm)} TFLOP/s, fp32 {number(ceiling('ceiling-gemm-fp32', None))} TFLOP/s, "
          f"copies {number(copy)} GB/s")
    for name in BATCHED:
        batches = [sides for row, sides in rows.items() if row.startswith(f"{name}-B")]
        if batches:
            rows[name] = {by: [e for sides in batches for e in sides[by]] for by in ("limbeck", "torch")}
    header = f"{'row':<28}{'ours':>8}{'torch':>8} {'unit':<12}{'ours ms':>9}{'spread':>7}{'ratio':>7}{'floor':>6}  bar"
    print(header)
    results = []
    first = ["train", "extract-T128", "extract-T1024", "kd", "sequence-sampled", "sequence-full", "interpolate",
             "rank", "request", "request-js"]
    first += [f"attention-T{length}-{way}" for length in (1024, 2048, 4096) for way in ("forward", "both")]
    order = sorted(rows, key=lambda row: first.index(row) if row in first else len(first))
    for row in order:
        sides = rows[row]
        # The bar of attention is FlashAttention-2; what else PyTorch has is printed below.
        peers = [e for e in sides["torch"] if not row.startswith("attention") or e["variant"] == "flash"]
        # What only the bench sets is printed, and meets no bar.
        own = [e for e in sides["limbeck"] if "MB between" not in e["variant"]]
        ours, theirs = best_of(own), best_of(peers or sides["torch"])
        shown = ours or theirs
        if shown is None:
            continue
        name = row
        flops, byte_count, ratio_bar, value_bar = ROWS.get(row, (0, 0, None, None))
        workload, _, batch = shown["row"].rpartition("-B")
        if workload in BATCHED:
            of_batch, *bars = BATCHED[workload]
            flops, byte_count = of_batch(int(batch))
        if row in BATCHED:
            ratio_bar, value_bar = bars
            batch_of = lambda entry: entry["row"].rpartition("-")[2] if entry else "-"
            name = f"{row} ({batch_of(ours)}, {batch_of(theirs)})"
        unit = shown["unit"]
        ratio = None
        if ours and theirs:
            ratio = theirs["value"] / ours["value"] if is_lower_better(unit) else ours["value"] / theirs["value"]
        share = None
        if ours and gemm and copy:
            floor = max(flops / gemm / 1e9, byte_count / copy / 1e6)  # ms
            if unit == "GB/s":
                share = ours["value"] / copy
            elif floor > 0:
                share = floor / ours["ms"]
            elif unit == "TFLOP/s":
                share = ours["value"] / gemm
        verdicts = []
        if ratio_bar and ratio is not None:
            verdicts.append(f"{'ok' if ratio >= ratio_bar else 'MISSED'} {ratio_bar}x")
        if value_bar and ours:
            met = ours["value"] <= value_bar if is_lower_better(unit) else ours["value"] >= value_bar
            verdicts.append(f"{'ok' if met else 'MISSED'} {number(value_bar)}")
        if row == "interpolate" and ours and copy:
            verdicts.append(f"{'ok' if ours['value'] >= 0.9 * copy else 'MISSED'} 0.9 of copies")
        spread = f"{(ours['max'] - ours['min']) / ours['ms'] * 100:.0f}%" if ours and "ms" in ours else "-"
        print(f"{name:<28}{number(ours and ours['value']):>8}{number(theirs and theirs['value']):>8} {unit:<12}"
              f"{number(ours and ours.get('ms')):>9}{spread:>7}{f'{ratio:.2f}' if ratio else '-':>7}"
              f"{f'{share:.2f}' if share else '-':>6}  {', '.join(verdicts)}")
        for entry in sides["limbeck"]:
            if row not in BATCHED and entry not in own:
                print(f"    {entry['variant']}: {number(entry['value'])}")
        if theirs and row not in BATCHED and (options.all or len(sides["torch"]) > 1):
            for entry in sides["torch"]:
                print(f"    torch {entry['variant']}: {number(entry['value'])}")
        result = {"row": row, "unit": unit, "ratio": ratio, "ofFloor": share, "bars": verdicts}
        # In all-bf16 variants weights and moments are rounded to eight bits after each step; ours keep fp32 masters.
        master = best_of([e for e in sides["torch"] if "autocast" in e["variant"]]) if row == "train" else None
        if ours and master:
            result["ratioWithMasterWeights"] = ours["value"] / master["value"]
            print(f"    of PyTorch with fp32 weights and moments, as ours (autocast, {master['row'][6:]}, "
                  f"{number(master['value'])}): {result['ratioWithMasterWeights']:.2f}")
        results.append(result | {"limbeck": sides["limbeck"], "torch": sides["torch"]})
    for where, message in errors[:12]:
        print(f"failed: {where}: {message[:150]}")
    if options.json:
        write_json(results, errors, versions, {"gemm": gemm, "copy": copy})


def write_json(results, errors, versions, ceilings):
    machine = {}
    if options.machine:
        try:
            for line in open(options.machine, encoding="utf-8"):
                name, _, value = line.partition(":")
                if value.strip():
                    machine[name.strip()] = value.strip()
        except OSError:
            pass
    commit = options.commit
    if commit == "unknown":
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or commit
    result = {
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": options.seed,
        "machine": machine,
        "versions": versions,
        "ceilings": {"bfloat16TflopPerSecond": ceilings["gemm"], "copyGBPerSecond": ceilings["copy"]},
        "rows": results,
        "failed": [{"row": row, "error": message} for row, message in errors],
    }
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


main()
