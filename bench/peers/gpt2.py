"""A GPT-2 of a checkpoint directory in plain PyTorch, fast paths on."""

import json
import struct
from pathlib import Path

import torch
import torch.nn.functional as F


def read_checkpoint(directory):
    data = (Path(directory) / "model.safetensors").read_bytes()
    (header_length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_length])
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        start = 8 + header_length + begin
        tensor = torch.frombuffer(bytearray(data[start : start + end - begin]), dtype=torch.float32)
        tensors[name.removeprefix("transformer.")] = tensor.reshape(info["shape"])
    return json.loads((Path(directory) / "config.json").read_text()), tensors


class GPT2(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        config, tensors = read_checkpoint(directory)
        self.heads, self.layers, self.eps = config["n_head"], config["n_layer"], config["layer_norm_epsilon"]
        self.weights = torch.nn.ParameterDict()
        for name, tensor in tensors.items():
            # Conv1D stores [in, out]; F.linear wants [out, in].
            is_conv = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
            tensor = tensor.t().contiguous() if is_conv else tensor.clone()
            self.weights[name.replace(".", "/")] = torch.nn.Parameter(tensor)

    def weight(self, name):
        return self.weights[name.replace(".", "/")]

    def linear(self, x, name):
        return F.linear(x, self.weight(name + ".weight"), self.weight(name + ".bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.weight(name + ".weight"), self.weight(name + ".bias"), self.eps)

    def forward(self, ids):
        """ids [B, T] -> hidden states, each [B, T, d]; the last after the final norm."""
        batch, length = ids.shape
        x = self.weight("wte.weight")[ids] + self.weight("wpe.weight")[:length]
        states = [x]
        for layer in range(self.layers):
            prefix = f"h.{layer}."
            qkv = self.linear(self.norm(x, prefix + "ln_1"), prefix + "attn.c_attn")
            heads = [part.view(batch, length, self.heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]
            attended = F.scaled_dot_product_attention(*heads, is_causal=True)
            attended = attended.transpose(1, 2).reshape(batch, length, -1)
            x = x + self.linear(attended, prefix + "attn.c_proj")
            hidden = F.gelu(self.linear(self.norm(x, prefix + "ln_2"), prefix + "mlp.c_fc"), approximate="tanh")
            x = x + self.linear(hidden, prefix + "mlp.c_proj")
            states.append(x)
        states[-1] = self.norm(x, "ln_f")
        return states
