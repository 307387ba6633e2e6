"""One trial of one workload by PyTorch: torch_trial.py WORKLOAD.json DIRECTORY THREADS, as bench/trial.mjs."""

import contextlib
import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
from gpt2 import GPT2

MIN_SECONDS = 2
workload = json.loads(sys.argv[1])
directory, threads = sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
bfloat16 = workload.get("precision") == "bfloat16"


def autocast():
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()


class Random:
    def __init__(self, seed):
        self.state = seed

    def integer(self, limit):
        self.state = (self.state * 1664525 + 1013904223) % 2**32
        return self.state % limit


def sequences(seed=1):
    random = Random(seed)
    rows, length = workload.get("sequences", 1), workload["length"]
    ids = [random.integer(workload["model"]["vocabSize"]) for _ in range(rows * length)]
    return torch.tensor(ids).reshape(rows, length)


def median_seconds(run):
    run()
    seconds = []
    begin = time.perf_counter()
    while len(seconds) < 3 or time.perf_counter() - begin < MIN_SECONDS:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def forward(model):
    ids = sequences()

    def run():
        with torch.inference_mode(), autocast():
            return model(ids)

    check = run()[-1].float().flatten()[-8:].tolist()
    return {"check": check, "value": ids.numel() / median_seconds(run)}


def teacher_logits(rows, vocab_size):
    index = torch.arange(rows * vocab_size, dtype=torch.int64)
    index = (index * 2654435761) % 2**32
    return ((index >> 8).float() / 16777216 * 6 - 3).reshape(rows, vocab_size)


def train(model):
    ids = sequences()
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    labels = labels.flatten()
    count = int((labels != -100).sum())
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    teacher = teacher_logits(ids.numel(), workload["model"]["vocabSize"]) if workload.get("distils") else None
    kept = labels != -100

    def run():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            hidden = model(ids)[-1].flatten(0, 1)[kept]
            logits = F.linear(hidden, model.weight("wte.weight"))
        loss = F.cross_entropy(logits.float(), labels[kept])
        if teacher is not None:
            tau = 2.0
            soft = F.log_softmax(teacher[kept] / tau, dim=-1)
            student = F.log_softmax(logits.float() / tau, dim=-1)
            kd = F.kl_div(student, soft, reduction="batchmean", log_target=True) * tau * tau
            loss = 0.5 * loss + 0.5 * kd
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    check = [run(), run()]
    return {"check": check, "value": count / median_seconds(run)}


def evaluate(model):
    ids = sequences()
    chunk = 256

    def run():
        best = []
        with torch.inference_mode():
            for begin in range(0, len(ids), chunk):
                rows = ids[begin : begin + chunk]
                scores = F.linear(model(rows)[-1][:, -1], model.weight("wte.weight"))
                scores.scatter_(1, rows, float("-inf"))
                best.append(scores.topk(workload["k"]).indices)
        return torch.cat(best)

    check = run()[0].tolist()
    return {"check": check, "value": len(ids) / median_seconds(run)}


def interpolate(model):
    with torch.inference_mode():
        table = model.weight("wte.weight").data
        target = table.flatten() + (torch.arange(table.numel()) % 7).float()
        target = target.reshape(table.shape)
        table.lerp_(target, 0.25)
        check = table.flatten()[:8].tolist()
        seconds = median_seconds(lambda: table.lerp_(target, 0.25))
        copied = torch.empty_like(table)
        copy_seconds = median_seconds(lambda: copied.copy_(target))
    bytes_moved = table.numel() * 4
    # A copy reads what it writes: three passes, as an interpolation.
    return {"check": check, "value": 3 * bytes_moved / seconds / 1e9, "copy": 3 * bytes_moved / copy_seconds / 1e9}


def request(model):
    random = Random(1)
    vocab_size, length = workload["model"]["vocabSize"], workload["length"]
    histories = [torch.tensor([[random.integer(vocab_size) for _ in range(length)]]) for _ in range(50)]

    def run(i):
        with torch.inference_mode():
            last = model(histories[i % 50])[-1][0, -1]
            return torch.mv(model.weight("wte.weight"), last).topk(workload["k"]).indices

    check = run(0).tolist()
    durations = []
    begin = time.perf_counter()
    i = -20
    while i < 3000 and time.perf_counter() - begin < 3 * MIN_SECONDS:
        start = time.perf_counter()
        run(i + 20)
        if i >= 0:
            durations.append((time.perf_counter() - start) * 1000)
        i += 1
    durations.sort()
    return {"check": check, "value": durations[len(durations) // 2], "p99": durations[int(len(durations) * 0.99)]}


result = globals()[workload["task"]](GPT2(directory))
result["peakBytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(result))
