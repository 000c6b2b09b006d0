"""The peer, in a process of its own: transformers loads each checkpoint and runs the probe's tokens, no more.

`python -m scripts.bench.peer TOKENS.npy CHECKPOINT…` prints seconds of loading and of the forward passes as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

BATCH = 8  # windows a forward pass


def main(tokens_path: str, folders: list[str]) -> None:
    logging.disable_progress_bar()
    tokens_WS = torch.from_numpy(np.load(tokens_path))
    seconds = {"load": 0.0, "forward": 0.0}
    for folder in folders:
        begin = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        loaded = time.perf_counter()
        with torch.inference_mode():
            for part_WS in tokens_WS.split(BATCH):
                model(part_WS, output_router_logits=True, use_cache=False)
        seconds["load"] += loaded - begin
        seconds["forward"] += time.perf_counter() - loaded
        del model
        gc.collect()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
