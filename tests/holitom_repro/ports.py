"""Checkpoints as they are published, with few and small layers, and the four benchmarks in their published layouts.

Fields and values of the files are those of llava-hf/llava-onevision-qwen2-7b-ov-hf and lmms-lab/LLaVA-Video-7B-Qwen2
(numbers of layers, widths and ids of tokens apart)."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
import transformers as hf
from hosts import PORTS, QWEN2
from test_convert import convert, tokenizer, weights, write
from tokenizers import AddedToken

from holitom_repro.tiny.benchmarks import video_path

TASKS = Path(find_spec("lmms_eval").origin).parent / "tasks"


def answering_a(words: torch.Tensor, norm: torch.Tensor, head: torch.Tensor, a: int, end: int) -> None:
    """Make a random model answer "A": its last word alone decides, by one component that outweighs the layers'."""
    words[:, 0], words[a, 0], norm[0] = 40.0, -40.0, 1.0
    head.zero_()
    head[a, 0], head[end, 0] = 1.0, -1.0


def put(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def onevision_port(folder: Path) -> Path:
    tokenizer(folder)
    words = hf.AutoTokenizer.from_pretrained(folder)
    words.add_tokens([AddedToken(mark, special=True) for mark in ("<image>", "<video>")])
    words.save_pretrained(folder)
    names = {"image": "<image>", "video": "<video>", "end": "<|im_end|>"}
    ids = {name: words.convert_tokens_to_ids(mark) for name, mark in names.items()}
    text = {
        "_name_or_path": "Qwen/Qwen2-7B-Instruct", "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 1,
        "eos_token_id": ids["end"], "hidden_size": 32, "intermediate_size": 48, "model_type": "qwen2",
        "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2, "rope_theta": 1000000.0,
        "torch_dtype": "bfloat16", "vocab_size": 320,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "image_size": 384, "intermediate_size": 24, "model_type": "siglip_vision_model",
        "num_attention_heads": 2, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"], "ignore_index": -100,
        "image_grid_pinpoints": [[384, 384], [384, 768]], "image_token_index": ids["image"],
        "model_type": "llava_onevision", "projector_hidden_act": "gelu", "text_config": text,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.45.0.dev0",
        "use_image_newline_parameter": True, "video_token_index": ids["video"], "vision_aspect_ratio": "anyres_max_9",
        "vision_config": vision, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    }  # fmt: skip
    put(folder / "config.json", config)
    torch.manual_seed(0)
    model = hf.LlavaOnevisionForConditionalGeneration(hf.AutoConfig.from_pretrained(folder))
    for weight in model.parameters():
        weight.data.normal_(0, 0.15)
    a = words.convert_tokens_to_ids("A")
    core = model.model.language_model
    answering_a(core.embed_tokens.weight.data, core.norm.weight.data, model.lm_head.weight.data, a, ids["end"])
    model.half().save_pretrained(folder)
    put(folder / "config.json", config)
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": ids["end"]}
    put(folder / "generation_config.json", generation | {"transformers_version": "4.45.0.dev0"})
    put(folder / "chat_template.json", {"chat_template": PORTS})
    image = {
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_grid_pinpoints": [[384, 384]], "image_mean": [0.5] * 3, "image_processor_type":
        "LlavaOnevisionImageProcessor", "image_std": [0.5] * 3, "processor_class": "LlavaOnevisionProcessor",
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 384, "width": 384},
    }  # fmt: skip
    put(folder / "preprocessor_config.json", image)
    return folder


def video_port(folder: Path) -> Path:
    """LLaVA-Video in its authors' format, converted."""
    original = folder.with_name("original")
    original.mkdir()
    tokenizer(original)
    words = hf.AutoTokenizer.from_pretrained(original)
    words.chat_template, words.padding_side = QWEN2, "right"
    tensors = {name: weight.clone() for name, weight in weights().items()}
    a, *ends = words.convert_tokens_to_ids(["A", "<|im_end|>", "<|endoftext|>"])
    answering_a(*(tensors[f"{name}.weight"] for name in ("model.embed_tokens", "model.norm", "lm_head")), a, ends[0])
    write(original, tensors)
    words.save_pretrained(original, save_jinja_files=False)
    generation = {"bos_token_id": ends[1], "do_sample": True, "eos_token_id": ends, "pad_token_id": ends[1]}
    generation |= {"repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    put(original / "generation_config.json", generation)
    convert(original, folder, "--pool", "average")
    return folder


VIDEO = {"question": "color ?", "answer": "A"}
LAYOUTS = {  # task files, where the videos lie in HF_HOME, and a document about clip v0
    "egoschema_subset": (
        "egoschema/egoschema_subset.yaml", "egoschema/videos", "Subset", "test",
        {"question_idx": "0", "video_idx": "v0", "option": [f"{a}. {a * 3}" for a in "ABCDE"], "answer": "0"},
    ),
    "videomme": (
        "videomme/videomme.yaml", "videomme/data", "default", "test",
        {"question_id": "1", "videoID": "v0", "options": ["A. red.", "B. blue."], "duration": "short",
         "domain": "Knowledge", "sub_category": "Astronomy", "task_type": "OCR Problems"},
    ),
    "longvideobench_val_v": (
        "longvideobench/longvideobench_val_v.yaml", "datasets/longvideobench/videos", "default", "validation",
        {"id": "x_0", "video_path": "v0.mp4", "option0": "red", "option1": "blue", "option2": "N/A", "option3": "N/A",
         "option4": "N/A", "correct_choice": 1, "duration_group": 15, "question_category": "S2E"},
    ),
    "mvbench_action_antonym": (
        "mvbench/mvbench_action_antonym.yaml", "mvbench_video/ssv2_video_mp4", "action_antonym", "train",
        {"video": "v0.mp4", "candidates": ["red", "blue"], "answer": "red"},
    ),
    "mvbench_moving_count": (
        "mvbench/mvbench_moving_count.yaml", "mvbench_video/clevrer/video_validation", "moving_count", "train",
        {"video": "v0.mp4", "candidates": ["1", "2", "3"], "answer": "2"},
    ),
}  # fmt: skip


def benchmarks(root: Path, videos: int) -> tuple[Path, Path]:
    """HF_HOME, and a folder with task files, which are lmms-eval's own but for the place of the data; MVBench has two
    of its twenty tasks."""
    home, tasks = root / "home", root / "tasks"
    tasks.mkdir(parents=True)
    for task, (file, place, name, split, doc) in LAYOUTS.items():
        (home / place).mkdir(parents=True)
        (root / task).mkdir()
        for k in range(videos):
            shutil.copy(video_path("tiny_ego", f"{k:03d}.mp4"), home / place / f"v{k}.mp4")
        rows = [
            {key: value.replace("v0", f"v{k}") if isinstance(value, str) else value for key, value in doc.items()}
            for k in range(videos)
        ]
        pd.DataFrame([VIDEO | row for row in rows]).to_parquet(root / task / f"{split}-0.parquet")
        files = f"  data_files:\n  - split: {split}\n    path: {split}-0.parquet\n"
        (root / task / "README.md").write_text(f"---\nconfigs:\n- config_name: {name}\n{files}---\n")
        own = f"task: {task}\ninclude: {TASKS / file}\ndataset_path: {root / task}\n"
        (tasks / f"{task}.yaml").write_text(own)
    parts = "".join(f"- {task}\n" for task in LAYOUTS if task.startswith("mvbench"))
    (tasks / "mvbench.yaml").write_text(f"group: mvbench\ntask:\n{parts}")
    return home, tasks
