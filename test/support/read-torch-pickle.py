"""Reads a state_dict that old PyTorch (before 1.6) pickled, without PyTorch, and writes it as safetensors.

    python3 read-torch-pickle.py MODEL.pt MODEL.safetensors

Only float32 tensors, laid out row by row. The pickle may name the four globals below and no other, so that a file can
run no code.
"""
import collections
import json
import pickle
import struct
import sys

MAGIC = 0x1950A86A20F9469CFC6C


class Storage:
    pass


def rebuild(key, offset, size, stride, *_rest):
    expected = []
    step = 1
    for length in reversed(size):
        expected.insert(0, step)
        step *= length
    if tuple(expected) != tuple(stride):
        raise ValueError(f"expected a tensor laid out row by row, got size {size} with stride {stride}")
    return key, offset, tuple(size)


class Unpickler(pickle.Unpickler):
    ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_rest: tensor,
        ("torch", "FloatStorage"): Storage,
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"expected a state_dict of float32 tensors, got {module}.{name}")
        return self.ALLOWED[module, name]

    def persistent_load(self, identity):
        return identity[2]


def main(source, target):
    with open(source, "rb") as file:
        if pickle.load(file) != MAGIC:
            raise ValueError(f"{source}: expected a file of torch.save() before PyTorch 1.6")
        pickle.load(file), pickle.load(file)  # protocol, machine
        state = Unpickler(file).load()
        storages = {}
        for key in pickle.load(file):
            (count,) = struct.unpack("<q", file.read(8))
            storages[key] = file.read(4 * count)

    header, data = {}, []
    begin = 0
    for name, (key, offset, size) in state.items():
        count = 1
        for length in size:
            count *= length
        values = storages[key][4 * offset : 4 * (offset + count)]
        header[name] = {"dtype": "F32", "shape": list(size), "data_offsets": [begin, begin + len(values)]}
        begin += len(values)
        data.append(values)
    text = json.dumps(header).encode()
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


main(*sys.argv[1:])
