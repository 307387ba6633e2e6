"""What PyTorch does on the same GPU: the rows of bench_cuda, one JSON object a line.

    python3 peers.py --parts train,extract,kd,sequence,attention,ops,topk,request,rank --out peers.jsonl --max-seconds 90
    python3 peers.py --prewarm            compiles everything into the caches, times nothing
    python3 peers.py --check-student DIR LOGITS   a student saved by Limbeck, opened by transformers, against its logits

Weights and data are random; nothing is downloaded. Each variant (eager, compiled, CUDA graphs; autocast, pure bf16) is a
row of its own, and the table compares with the best. A variant that fails is a row with "error".
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

arguments = argparse.ArgumentParser()
arguments.add_argument("--parts", default="train,extract,kd,sequence,attention,ops,topk,request,rank")
arguments.add_argument("--out", default="-")
arguments.add_argument("--rounds", type=int, default=7)
arguments.add_argument("--max-seconds", type=float, default=120, help="of a part; further variants are then left out")
arguments.add_argument("--device", default="cuda")
arguments.add_argument("--tiny", action="store_true", help="shapes for a dry run")
arguments.add_argument("--no-compile", action="store_true")
arguments.add_argument("--prewarm", action="store_true")
arguments.add_argument("--seed", type=int, default=1)
arguments.add_argument("--check-student", nargs=2, metavar=("DIR", "LOGITS"))
options = arguments.parse_args()
device = torch.device(options.device)
is_cuda = device.type == "cuda"
tiny = options.tiny
output = sys.stdout if options.out == "-" else open(options.out, "a", encoding="utf-8")

VOCAB, PADDED_VOCAB = (500, 512) if tiny else (50257, 50304)  # padded as nanoGPT does: aligned rows multiply faster
GPT2 = dict(layers=2, width=32, heads=2) if tiny else dict(layers=12, width=768, heads=12)


def emit(row, variant, value=None, unit="", milliseconds=None, **more):
    line = {"row": row, "by": "torch", "variant": variant, "value": value, "unit": unit}
    if milliseconds:
        line |= {"ms": statistics.median(milliseconds), "min": min(milliseconds), "max": max(milliseconds)}
        line["rounds"] = len(milliseconds)
    line |= more
    print(json.dumps(line), file=output, flush=True)
    if output is not sys.stdout:
        print(f"  torch {row} [{variant}] {value if value is None else round(value, 1)} {unit} {more.get('error', '')}"[:200])


def synchronize():
    if is_cuda:
        torch.cuda.synchronize()


def time_rounds(step, steps, rounds=None, warm_up=3):
    """Milliseconds a step, one entry a round of `steps` steps, by the host's clock between synchronisations."""
    for _ in range(1 if options.prewarm else warm_up):
        step()
    synchronize()
    if options.prewarm:
        return [1.0]
    result = []
    for _ in range(rounds or options.rounds):
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize()
        result.append((time.perf_counter() - begin) / steps * 1e3)
    return result


def device_rounds(step, steps, rounds=None):
    """The same by device events: what the device took, launches included where they hold it up."""
    if not is_cuda:
        return time_rounds(step, steps, rounds)
    for _ in range(3):
        step()
    if options.prewarm:
        return [1.0]
    result = []
    for _ in range(rounds or options.rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        result.append(begin.elapsed_time(end) / steps)
    return result


def compiled(function, mode="default"):
    if options.no_compile or mode == "eager":
        return function
    return torch.compile(function, dynamic=False, mode=None if mode == "default" else mode)


class Part:
    """Runs variants, in order, until the time of the part is over; one that fails does not stop the rest."""

    def __init__(self, name):
        self.name, self.begin = name, time.perf_counter()

    def over(self):
        return time.perf_counter() - self.begin > options.max_seconds

    @contextlib.contextmanager
    def variant(self, row, name):
        try:
            yield
        except Exception as error:  # out of memory, an unsupported backend: a row says so
            emit(row, name, error=f"{type(error).__name__}: {error}".splitlines()[0][:160])
        finally:
            torch._dynamo.reset()
            if is_cuda:
                torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------------------- models


prefer_cudnn = False


def attend(q, k, v):
    if prefer_cudnn:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.project = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        y = attend(q, k, v)
        x = x + self.project(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Transformer(torch.nn.Module):
    """GPT-2's architecture with tied embeddings; returns hidden states [B, T, d]."""

    def __init__(self, vocab, length, layers, width, heads):
        super().__init__()
        self.word, self.position = torch.nn.Embedding(vocab, width), torch.nn.Embedding(length, width)
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("project.weight", "down.weight"))
                torch.nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if deep else 1))

    def forward(self, ids):
        x = self.word(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def random_ids(count_vocab, *shape):
    return torch.randint(count_vocab, shape, device=device)


def skewed_ids(count_vocab, *shape):
    """P(id) ~ 1/id, as items and words are."""
    ids = torch.exp(torch.rand(shape, device=device, dtype=torch.float64) * math.log(count_vocab)).long() - 1
    return ids.clamp_(0, count_vocab - 1)


def optimizer_of(model):
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=is_cuda)


def precision_of(kind):
    """autocast: fp32 weights, bf16 products. bf16: weights and optimiser state in bf16 too, no master copy."""
    return torch.autocast(device.type, torch.bfloat16) if kind == "autocast" else contextlib.nullcontext()


def training_step(model, loss_of, kind, clip=1.0):
    optimizer = optimizer_of(model)
    parameters = list(model.parameters())

    def step():
        with precision_of(kind):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build(kind, *shape):
    model = Transformer(*shape).to(device)
    return model.to(torch.bfloat16) if kind == "bf16" else model


# -------------------------------------------------------------------------------------------------------------- parts


def train(part):
    global prefer_cudnn
    length = 32 if tiny else 1024

    def run(batch, kind, mode="default"):
        row, name = f"train-B{batch}", f"{mode}, {kind}{', cuDNN attention' if prefer_cudnn else ''}"
        with part.variant(row, name):
            model = build(kind, PADDED_VOCAB, length, *GPT2.values())
            ids = random_ids(VOCAB, 4, batch, length)
            labels = random_ids(VOCAB, 4, batch, length)
            turn = [0]

            def loss_of_batch(ids, labels):
                logits = F.linear(model(ids), model.word.weight)
                return F.cross_entropy(logits.view(-1, PADDED_VOCAB), labels.view(-1))

            loss_fn = compiled(loss_of_batch, mode)

            def loss_of():
                turn[0] = (turn[0] + 1) % 4
                return loss_fn(ids[turn[0]], labels[turn[0]])

            times = time_rounds(training_step(model, loss_of, kind), 1 if tiny else max(2, 128 // batch))
            tokens = batch * length / statistics.median(times) * 1e3
            emit(row, name, tokens, "tokens/s", times, batch=batch)

    if tiny:
        run(2, "autocast"), run(2, "bf16")
        return
    for batch, kind, with_cudnn in (
        (64, "autocast", True), (64, "bf16", False), (66, "autocast", True), (66, "bf16", False), (64, "bf16", True),
        (128, "bf16", False), (128, "autocast", True), (4, "autocast", False),
    ):
        if part.over():
            return
        if options.prewarm and batch > 66:
            continue  # takes the memory that the tests beside it need
        prefer_cudnn = with_cudnn
        run(batch, kind)
        prefer_cudnn = False


def extract(part):
    cases = ((4, 8), (2, 16)) if tiny else ((256, 128), (264, 128), (32, 1024), (33, 1024), (64, 1024), (66, 1024))
    for batch, length in cases:
        if part.over():
            return
        row = f"extract-T{length}-B{batch}"
        with part.variant(row, "default, bf16 to pinned fp32, overlapped"):
            model = build("bf16", PADDED_VOCAB, length, *GPT2.values()).eval()
            forward = compiled(lambda ids: model(ids).float())
            ids = random_ids(VOCAB, 4, batch, length)
            host = [torch.empty(batch, length, GPT2["width"], pin_memory=is_cuda) for _ in range(2)]
            copier = torch.cuda.Stream() if is_cuda else None
            turn = [0]

            @torch.no_grad()
            def step():
                turn[0] += 1
                hidden = forward(ids[turn[0] % 4])
                if copier is None:
                    host[turn[0] % 2].copy_(hidden)
                    return
                copier.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(copier):
                    host[turn[0] % 2].copy_(hidden, non_blocking=True)
                hidden.record_stream(copier)

            times = time_rounds(step, 1 if tiny else 8)
            emit(row, "default, bf16 to pinned fp32, overlapped", batch * length / statistics.median(times) * 1e3,
                 "tokens/s", times)


def kd(part):
    length, width, heads, layers = (32, 16, 2, 1) if tiny else (512, 256, 4, 4)
    tau = 2.0

    def run(batch, mode):
        row, name = f"kd-B{batch}", f"{mode}, autocast, teacher bf16"
        with part.variant(row, name):
            teacher = build("bf16", PADDED_VOCAB, length, *GPT2.values()).eval().requires_grad_(False)
            student = build("autocast", PADDED_VOCAB, length, layers, width, heads)
            ids, labels = random_ids(VOCAB, 4, batch, length), random_ids(VOCAB, 4, batch, length)
            turn = [0]

            def loss_of_batch(ids, labels):
                with torch.no_grad():
                    teacher_logits = F.linear(teacher(ids), teacher.word.weight).view(-1, PADDED_VOCAB)
                logits = F.linear(student(ids), student.word.weight).view(-1, PADDED_VOCAB)
                ce = F.cross_entropy(logits, labels.view(-1))
                soft = F.softmax(teacher_logits.float() / tau, dim=-1)
                log_soft = F.log_softmax(teacher_logits.float() / tau, dim=-1)
                kl = (soft * (log_soft - F.log_softmax(logits.float() / tau, dim=-1))).sum(-1).mean()
                return 0.5 * ce + 0.5 * tau * tau * kl

            loss_fn = compiled(loss_of_batch, mode)

            def loss_of():
                turn[0] = (turn[0] + 1) % 4
                return loss_fn(ids[turn[0]], labels[turn[0]])

            times = time_rounds(training_step(student, loss_of, "autocast"), 1 if tiny else 4)
            emit(row, name, batch * length / statistics.median(times) * 1e3, "tokens/s", times)

    # Not max-autotune: minutes of compilation for a few percent.
    cases = ((2, "default"),) if tiny else ((32, "reduce-overhead"), (66, "default"), (33, "reduce-overhead"), (32, "default"))
    for batch, mode in cases:
        if part.over():
            return
        run(batch, mode)


def sequence(part):
    batch, length, width, heads, layers = (4, 10, 16, 2, 1) if tiny else (512, 50, 128, 2, 2)
    sampled_items, full_items, negatives = (300, 200, 16) if tiny else (1_000_000, 100_000, 8192)

    def run(row, items, mode, kind):
        name = f"{mode}, {kind}"
        with part.variant(row, name):
            model = build(kind, items, length, layers, width, heads)
            ids, labels = skewed_ids(items, 4, batch, length), skewed_ids(items, 4, batch, length)
            turn = [0]

            def full_loss(ids, labels):
                logits = F.linear(model(ids), model.word.weight).view(-1, items)
                return F.cross_entropy(logits, labels.view(-1))

            def sampled_loss(ids, labels):
                hidden, labels = model(ids).view(-1, width), labels.view(-1)
                drawn = torch.randint(items, (negatives,), device=device)
                positive = (hidden.float() * model.word.weight.index_select(0, labels).float()).sum(-1, keepdim=True)
                logits = F.linear(hidden, model.word.weight.index_select(0, drawn)).float()
                logits = logits.masked_fill(drawn == labels[:, None], float("-inf"))
                return (torch.logsumexp(torch.cat([positive, logits], 1), 1, keepdim=True) - positive).mean()

            loss_fn = compiled(sampled_loss if row == "sequence-sampled" else full_loss, mode)

            def loss_of():
                turn[0] = (turn[0] + 1) % 4
                return loss_fn(ids[turn[0]], labels[turn[0]])

            times = time_rounds(training_step(model, loss_of, kind), 1 if tiny else 6)
            emit(row, name, batch / statistics.median(times) * 1e3, "sequences/s", times)

    for mode in ("default", "reduce-overhead"):
        for row, items in (("sequence-sampled", sampled_items), ("sequence-full", full_items)):
            if not part.over():
                run(row, items, mode, "autocast")


def attention(part):
    heads, width, total = (2, 8, 64) if tiny else (12, 64, 16384)
    backends = [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]
    if not is_cuda:
        backends = [("math", SDPBackend.MATH)]
    for length in (16, 32) if tiny else (1024, 2048, 4096):
        batch = total // length
        flops = 2 * batch * heads * length * length * width
        for name, backend in backends:
            for way, factor in (("forward", 1.0), ("both", 3.5)):
                row = f"attention-T{length}-{way}"
                with part.variant(row, name), sdpa_kernel(backend):
                    # The layout of a model: [B, T, H, d] seen as [B, H, T, d].
                    shape = (batch, length, heads, width)
                    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
                    d_y = torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2)
                    for x in (q, k, v):
                        x.requires_grad_(way == "both")

                    def step():
                        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                        if way == "both":
                            torch.autograd.grad(y, (q, k, v), d_y)

                    times = device_rounds(step, 1 if tiny else 20)
                    emit(row, name, factor * flops / statistics.median(times) / 1e9, "TFLOP/s", times)


def ops(part):
    def rate(row, variant, step, byte_count, steps=20):
        with part.variant(row, variant):
            times = device_rounds(step, 1 if tiny else steps)
            emit(row, variant, byte_count / statistics.median(times) / 1e6, "GB/s", times)

    n = 256 if tiny else 8192
    with part.variant("ceiling-gemm-bf16", "matmul"):
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        times = device_rounds(lambda: torch.matmul(a, b.t()), 1 if tiny else 10)
        emit("ceiling-gemm-bf16", "matmul", 2 * n**3 / statistics.median(times) / 1e9, "TFLOP/s", times)
    count = 1 << (16 if tiny else 30)
    with part.variant("ceiling-copy", "copy_"):
        source, target = torch.randint(0, 99, (count,), device=device, dtype=torch.int32), torch.empty(
            count, device=device, dtype=torch.int32)
        rate("ceiling-copy", "copy_", lambda: target.copy_(source), 8 * count, 10)
        del source, target
    count = 4096 if tiny else 124_439_808
    with torch.no_grad():
        parameters, target = (torch.randn(count, device=device) for _ in range(2))
        rate("interpolate", "lerp_", lambda: parameters.lerp_(target, 1e-3), 12 * count)
        groups = [torch.randn(count, device=device).requires_grad_()]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=is_cuda)
        groups[0].grad = torch.randn(count, device=device)
        rate("adamw", "fused", optimizer.step, 28 * count, 10)
        del groups, optimizer, parameters, target
    rows, width = (64, 32) if tiny else (65536, 768)
    x = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    weight, bias = (torch.randn(width, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    with torch.no_grad():
        rate("layer-norm-forward", "eager", lambda: F.layer_norm(x, (width,), weight, bias), 4 * rows * width)
    wide = torch.randn(rows, 4 * width, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        rate("gelu-forward", "eager", lambda: F.gelu(wide, approximate="tanh"), 4 * rows * 4 * width)


def graphed(step):
    """A replay of what `step` launches."""
    if not is_cuda:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def topk(part):
    items, width = (1000, 16) if tiny else (1_000_000, 64)
    table = torch.randn(items, width, device=device, dtype=torch.bfloat16)
    query = torch.randn(1, width, device=device, dtype=torch.bfloat16)
    for k in (10, 100):
        for variant in ("eager", "graph"):
            row = f"topk-{k}"
            with part.variant(row, variant):
                step = lambda: torch.topk(torch.matmul(query, table.t()), k)
                if variant == "graph":
                    step = graphed(step)
                times = device_rounds(step, 1 if tiny else 200)
                emit(row, variant, statistics.median(times) * 1e3, "us", times)


@torch.no_grad()
def request(part):
    items, width, length = (1000, 16, 10) if tiny else (1_000_000, 64, 50)
    for variant, mode in (("eager", "eager"), ("graph", "eager"), ("graph of compiled", "default")):
        if part.over():
            return
        with part.variant("request", variant):
            model = build("bf16", items, length, 2, width, 1).eval()
            ids = random_ids(items, 1, length)
            forward = compiled(lambda ids: torch.matmul(model(ids)[:, -1], model.word.weight.t()), mode)
            answer = [None]

            def work():
                answer[0] = torch.topk(forward(ids), 10)

            work()
            step = graphed(work) if variant != "eager" else work
            host_ids = ids.cpu().pin_memory() if is_cuda else ids
            scores = torch.empty(1, 10, dtype=torch.bfloat16, pin_memory=is_cuda)
            indices = torch.empty(1, 10, dtype=torch.int64, pin_memory=is_cuda)

            def ask():
                ids.copy_(host_ids, non_blocking=True)
                step()
                scores.copy_(answer[0].values, non_blocking=True)
                indices.copy_(answer[0].indices, non_blocking=True)
                synchronize()

            times = time_rounds(ask, 1, 10 if tiny else 500)
            emit("request", variant, statistics.median(times) * 1e3, "us", times)


@torch.no_grad()
def rank(part):
    items, width, length, cases, k = (1000, 16, 10, 6, 20) if tiny else (1_000_000, 64, 50, 512, 20)
    for mode in ("default", "reduce-overhead"):
        if part.over():
            return
        with part.variant("rank", f"{mode}, bf16"):
            model = build("bf16", items, length, 2, width, 1).eval()
            ids, targets = skewed_ids(items, 4, cases, length), random_ids(items, 4, cases, 1)
            turn = [0]

            def rank_batch(ids, targets):
                scores = F.linear(model(ids)[:, -1], model.word.weight)
                target_scores = scores.gather(1, targets)
                scores = scores.scatter(1, ids, float("-inf")).scatter(1, targets, target_scores)
                return (scores >= target_scores).sum(1), *torch.topk(scores, k)

            rank_compiled = compiled(rank_batch, mode)

            def step():
                turn[0] = (turn[0] + 1) % 4
                return [result.cpu() for result in rank_compiled(ids[turn[0]], targets[turn[0]])]

            times = time_rounds(step, 1 if tiny else 10)
            emit("rank", f"{mode}, bf16", cases / statistics.median(times) * 1e3, "users/s", times)


# ------------------------------------------------------------------------------------------------------------ student


def check_student(directory, logits_path):
    """LOGITS: safetensors of input_ids [S, T] and logits [S, T, V] fp32."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    stored = load_file(logits_path)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(stored["input_ids"].long()).logits
    if logits.shape != stored["logits"].shape:
        print(f"check-student: shapes {tuple(logits.shape)} and {tuple(stored['logits'].shape)}")
        return 1
    difference = (logits - stored["logits"]).abs().max().item()
    print(f"check-student: largest difference {difference:.3g} of logits up to {logits.abs().max().item():.3g}")
    print(json.dumps({"row": "check-student", "by": "transformers", "variant": "fp32", "value": difference, "unit": ""}),
          file=output, flush=True)
    return 0 if difference <= 1e-4 else 1


def main():
    torch.manual_seed(options.seed)
    if options.check_student:
        return check_student(*options.check_student)
    torch.set_float32_matmul_precision("high")
    if is_cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if is_cuda:
        versions["gpu"] = torch.cuda.get_device_name()
    emit("versions", "torch", None, "", **versions)
    parts = dict(train=train, extract=extract, kd=kd, sequence=sequence, attention=attention, ops=ops, topk=topk,
                 request=request, rank=rank)
    for name in options.parts.split(","):
        part = Part(name)
        try:
            parts[name](part)
        except Exception as error:
            emit(name, "part", error=f"{type(error).__name__}: {error}".splitlines()[0][:160])
        print(f"peers {name}: {time.perf_counter() - part.begin:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
