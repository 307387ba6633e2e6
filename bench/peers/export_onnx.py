"""Writes model.onnx into a checkpoint directory: export_onnx.py WORKLOAD.json DIRECTORY."""

import json
import sys
from pathlib import Path

import torch
from gpt2 import GPT2
from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

# The exporter asks for the `onnx` package only to look for functions that these graphs do not have.
onnx_proto_utils._add_onnxscript_fn = lambda model_bytes, custom_opsets: model_bytes

workload = json.loads(sys.argv[1])
directory = Path(sys.argv[2])
model = GPT2(directory)


class HiddenStates(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return tuple(self.model(ids))


class Request(torch.nn.Module):
    """The vector of the last item against the table, and the best k: [1, T] -> ids [k]."""

    def __init__(self):
        super().__init__()
        self.model = model

    def forward(self, ids):
        last = self.model(ids)[-1][:, -1]
        scores = last @ self.model.weight("wte.weight").t()
        return scores[0].topk(workload["k"]).indices


module = Request() if workload["task"] == "request" else HiddenStates()
ids = torch.zeros(workload.get("sequences", 1), workload["length"], dtype=torch.int64)
torch.onnx.export(
    module.eval(),
    (ids,),
    str(directory / "model.onnx"),
    input_names=["ids"],
    opset_version=18,
    dynamo=False,
    do_constant_folding=True,
)
