"""python3 open_students.py DIR: opens each model of DIR with transformers, and prints one JSON line a model: the largest
difference of its logits from those that Limbeck gave, relative to the largest logit; weights that are missing or left over;
whether the tokenizer splits the text alike. Written for transformers 5.18."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

root = Path(sys.argv[1])
for name, expected in json.loads((root / "expected.json").read_text()).items():
    opener = AutoModelForCausalLM if expected["isCausal"] else AutoModelForMaskedLM
    model, info = opener.from_pretrained(root / name, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(root / name)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([expected["ids"]])).logits[0]
    ours = torch.tensor(expected["logits"]).view_as(logits)
    row = {
        "family": name,
        "difference": ((logits - ours).abs().max() / ours.abs().max()).item(),
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "sameTokens": tokenizer(expected["text"])["input_ids"] == expected["ids"],
    }
    print(json.dumps(row), flush=True)
