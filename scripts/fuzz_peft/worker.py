"""Makes cases on request, a line of JSON each: {"room": "alone", "kind": "llama", "seed": "1", "folder": "…"}."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
import rooms  # noqa: E402

ROOMS = {
    "alone": rooms.make_alone, "several": rooms.make_several, "combined": rooms.make_combined,
    "targets": rooms.make_targets,
}


def answer(request: dict) -> dict:
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if request["room"] == "read":
            return rooms.read_back(request["kind"], folder)
        return {"case": ROOMS[request["room"]](request["kind"], request["seed"], folder)}
    except rooms.Refused as error:
        return {"refused": str(error)}


def main() -> None:
    # Libraries print; the answers go where they cannot.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()


main()
