"""One job of ``./reproduce.sh serving`` in the engine's environment: python scripts/serving_engine.py JOB ANSWERS.

JOB (torch.save): engine, the arguments of ``vllm.LLM``, or transformers, a model folder with an optional reduction;
requests, one dict each: prompt and video [T, H, W, 3], image [H, W, 3] or embeds [M, D].
ANSWERS (JSON): ids, the length of the prompt, log-probabilities of the first token.
"""

import json
import os
import sys
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image

ASKED = 8  # tokens


def by_vllm(arguments: dict[str, Any], requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from vllm import LLM, SamplingParams

    def media(one: dict[str, Any]) -> dict[str, Any]:
        found = {"video": one["embeds"][None]} if "embeds" in one else {"video": one["video"]} if "video" in one else {}
        found |= {"image": Image.fromarray(one["image"])} if "image" in one else {}
        return {"prompt": one["prompt"], "multi_modal_data": found} if found else {"prompt": one["prompt"]}

    ask = SamplingParams(temperature=0, max_tokens=ASKED, logprobs=5)
    answers = LLM(**arguments).generate([media(one) for one in requests], ask, use_tqdm=False)
    return [
        {
            "ids": list(one.outputs[0].token_ids),
            "length": len(one.prompt_token_ids or ()),
            "first": {token: found.logprob for token, found in one.outputs[0].logprobs[0].items()},
        }
        for one in answers
    ]


def by_transformers(folder: str, reduction: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    from holitom.attach import reduce_tokens

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for one in requests:
        media = {"videos": one["video"]} if "video" in one else {}
        media |= {"images": Image.fromarray(one["image"])} if "image" in one else {}
        inputs = processor(text=one["prompt"], **media, return_tensors="pt")
        inputs.pop("batch_num_images", None)
        asked = {"max_new_tokens": ASKED, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with reduce_tokens(model, reduction=reduction) if reduction and "video" in one else nullcontext():
            made = model.generate(**inputs, **asked)
        first = made.logits[0][0].log_softmax(-1).topk(5)
        length = inputs["input_ids"].shape[1]
        pairs = zip(first.indices.tolist(), first.values.tolist(), strict=True)
        answers.append({"ids": made.sequences[0, length:].tolist(), "length": length, "first": dict(pairs)})
    return answers


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    job = torch.load(sys.argv[1], weights_only=False)  # our own, written a moment ago
    torch.set_num_threads(1)
    if "engine" in job:
        found = by_vllm(job["engine"], job["requests"])
    else:
        found = by_transformers(job["transformers"], job.get("reduction"), job["requests"])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(found, file)
