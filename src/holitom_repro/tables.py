"""Tables of a notebook: a frame of scores in, a pandas frame or Styler out. Printed numbers stand in grey italics."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from holitom_repro import papers
from holitom_repro.papers import STANDS_FOR
from holitom_repro.records import UNREAD, write_atomic
from holitom_repro.style import BAD, VERDICTS, flattened, folder, write_csv

LOOK = {"printed": "color:#6b6b6b;font-style:italic", "measured": "color:#0b4f78"}
"""Last part of a column's name -> how its cells look; what is derived from printed numbers is plain."""
USUAL = ("answers", "most frequent (%)")
LABELS = {"avg": "average", **papers.BENCHMARKS}


def score(row: pd.Series) -> str:
    """``95.1 [93.2, 96.2] −2.1*``: a score, its 95 % interval, its paired difference to all tokens; * where the
    interval of that leaves out 0."""
    text = f"{row['accuracy']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    if pd.isna(row["diff"]):
        return text
    return f"{text} {row['diff']:+.1f}".replace(" -", " −") + "*" * bool(row["diff_low"] > 0 or row["diff_high"] < 0)


def usual_answer(scores: pd.DataFrame) -> pd.Series:
    """The share (%) of the answer that each row of a frame of scores gives most often: a method that answers one letter
    whatever is asked is seen by it. ``styled`` marks what is above 90."""
    return scores["answers"].map(lambda text: 100 * max(json.loads(text).values()))


def beside_controls(scores: pd.DataFrame, controls: Sequence[str] = ("Random", "Uniform stride")) -> pd.DataFrame:
    """Every setting of one model (a frame of ``evaluate``) and what it is worth beside plain controls at the same
    budget, on the same questions: difference of the averages in points with its 95 % interval, p corrected with Holm
    for all rows of the table, and McNemar's p, for which each question counts alone."""
    from holitom_repro.scores import compare

    mean = scores[scores["benchmark"] == "average"].drop_duplicates("key").set_index("key")
    table = pd.DataFrame({("average", "measured"): mean.apply(score, axis=1), ("tokens (%)", "kept"): mean["kept_pct"]})
    table["tokens (%)", "mean of layers"], table[USUAL] = mean["layer_pct"], usual_answer(mean)
    keys = {name: mean[mean["method"] == name].reset_index().set_index("budget")["key"] for name in controls}
    rivals = {name: mean["budget"].map(at).dropna() for name, at in keys.items()}
    found = compare(scores, [(a, b) for rival in rivals.values() for a, b in rival.items() if a != b])
    for name, rival in rivals.items():
        part = found[found["b"].isin(rival)].set_index("a").reindex(mean.index)
        spans = zip(part["value"], part["low"], part["high"], strict=True)
        table[f"over {name}", "points"] = [f"{v:+.1f} [{a:+.1f}, {b:+.1f}]" if a == a else "" for v, a, b in spans]
        table[f"over {name}", "p (Holm)"], table[f"over {name}", "p (McNemar)"] = part["p_holm"], part["mcnemar_p"]
    table.index = pd.MultiIndex.from_arrays([100 * mean["budget"], mean["method"]], names=["asked (%)", "method"])
    return table.sort_index(level=0, ascending=False, sort_remaining=False)


def beside_printed(
    scores: pd.DataFrame, printed: pd.DataFrame, columns: Mapping[str, str] | None = None, like: str = ""
) -> pd.DataFrame:
    """The paper's rows in its order with what was measured beside them, joined by key; then the measured rows that it
    does not print.

    scores: of ``scores.evaluate``; printed: of ``papers.printed``, with the columns key, method, retained_pct; columns:
    printed column -> benchmark (default: the averages). A tiny model stands beside the printed model whose presets it
    takes, another one beside ``like`` (default: the table's first); printed models that were not measured stay alone.
    """
    columns = columns or {"avg": "average"}
    known = list(printed["model"].unique())
    first = like if like in known else known[0]
    stands_for = {model: STANDS_FOR.get(model, model) for model in scores["model"].unique()}
    stands_for = {model: of if of in known else first for model, of in stands_for.items()}
    stands_for |= {name: name for name in known if name not in stands_for.values()}
    blocks = [_block(scores[scores["model"] == model], printed, of, columns) for model, of in stands_for.items()]
    labels = [model if model == of else f"{model} for {of}" for model, of in stands_for.items()]
    table = pd.concat(blocks, keys=labels, names=["model"]) if len(blocks) > 1 else blocks[0]
    table.attrs |= {"trial": bool(scores["limit"].notna().any()), "below": unread(scores)}
    return table


def unread(scores: pd.DataFrame) -> str:
    """What a table says below itself: how many questions had videos that cannot be read, and how they count."""
    told = scores[["benchmark", "notes"]].itertuples(index=False) if "notes" in scores else ()
    notes = [f"{name}: {note}" for name, notes in told for note in str(notes).split("; ") if UNREAD in note]
    return "; ".join(dict.fromkeys(notes))


def _block(scores: pd.DataFrame, printed: pd.DataFrame, model: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """One model's rows: index asked (%) and method."""
    quoted = printed[printed["model"] == model].drop_duplicates("key").set_index("key")
    keys = [*quoted.index, *(key for key in scores["key"].unique() if key not in quoted.index)]
    quoted = quoted.reindex(keys)

    def measured(benchmark: str) -> pd.DataFrame:
        return scores[scores["benchmark"] == benchmark].drop_duplicates("key").set_index("key")

    mean = measured("average")
    asked = quoted["retained_pct"].fillna(100 * mean["budget"])
    methods = quoted["method"].replace("Vanilla", "all tokens").fillna(mean["method"])
    table = pd.DataFrame({("tokens (%)", "measured"): mean["kept_pct"]}, index=keys)
    if "flops_pct" in quoted:
        table["FLOPs (%)", "printed"] = quoted["flops_pct"]
    table["FLOPs (%)", "measured"] = mean["flops_pct"]
    for name, benchmark in columns.items():
        label = LABELS.get(name, name) + (f" / {benchmark}" if benchmark not in ("average", name) else "")
        table[label, "printed"] = quoted[name]
        said = {key: score(row) for key, row in measured(benchmark).iterrows()}
        table[label, "measured"] = pd.Series(said, dtype=object)
    table[USUAL] = usual_answer(mean)
    if "avg_pct" in quoted:
        table["% of all tokens", "printed"] = quoted["avg_pct"]
    if "all tokens" in mean.index:
        table["% of all tokens", "measured"] = 100 * mean["accuracy"] / mean["accuracy"]["all tokens"]
    table.index = pd.MultiIndex.from_arrays([asked, methods], names=["asked (%)", "method"])
    return table


def ablation_table(scores: pd.DataFrame, default: str, benchmark: str = "average") -> pd.DataFrame:
    """Every other setting of a frame against ``default`` (a key) on the same questions: difference in points with its
    95 % interval, p corrected with Holm for all rows, how many answers changed, and what that leaves, in words."""
    from holitom_repro.scores import compare

    here = scores[scores["benchmark"] == benchmark].set_index("key")
    keys = [key for key in here.index if key not in (default, "all tokens")]
    found = compare(scores, [(key, default) for key in keys], benchmark).set_index("a").reindex(here.index)
    table = pd.DataFrame({"measured": here.apply(score, axis=1), "tokens (%)": here["kept_pct"]})
    table["FLOPs (%)"] = here["flops_pct"]
    table[["difference", "low", "high", "p (Holm)"]] = found[["value", "low", "high", "p_holm"]]
    side = np.where(found["value"] > 0, "▲ above", "▼ below")
    word = np.where(found["p_holm"] < 0.05, side, "not told apart")
    table["answers changed"] = found["changed"]
    table["beside the default"] = np.where(found["changed"] == 0, "no answer changes", word)
    table.loc[found["p"].isna(), "beside the default"] = ""
    table.attrs["below"] = unread(scores)
    return table.rename_axis("setting")


def verdict_table(verdicts: pd.DataFrame) -> Styler:
    """What ``claims.judged`` gives, to look at: verdicts with glyph and colour, the expected one only where it is
    another."""
    shown = verdicts.assign(expected=verdicts["expected"].where(verdicts["expected"] != verdicts["verdict"], ""))
    shown["verdict"] = [f"{VERDICTS[word][0]} {word}" for word in verdicts["verdict"]]
    order = ["claim", "printed", "ours", "interval", "verdict", "expected", "why"]
    made = styled(shown.set_index("id")[order], "Verdicts on the claims of this notebook")
    made = made.map(lambda word: f"color:{VERDICTS[word[2:]][1]};font-weight:600", subset=["verdict"])
    return made.format({"ours": "{:.2f}"}, na_rep="–", escape="html")


def styled(table: pd.DataFrame, caption: str = "") -> Styler:
    """Printed numbers in grey italics, measured ones in blue; of the measured averages at one budget the best, or those
    that share it, in bold."""

    def look(column: pd.Series) -> list[str]:
        name = _parts(column.name)
        if name == USUAL:
            return [f"color:{BAD};font-weight:700" if share > 90 else "" for share in column]
        plain = LOOK.get(name[-1], "")
        best = _best(column) if name == ("average", "measured") else [False] * len(column)
        return [f"{plain};font-weight:700" if bold else plain for bold in best]

    few = {name: "{:.3f}" for name in table.columns if str(_parts(name)[-1]).startswith("p (")}
    made = table.style.apply(look).format(few, precision=1, na_rep="–", escape="html")
    made = made.format_index(precision=1, escape="html")
    return made.set_caption(escape("; ".join(filter(None, (caption, table.attrs.get("below"))))))


def _parts(name: Any) -> tuple[Any, ...]:
    """A column's name, of one level or of several."""
    return name if isinstance(name, tuple) else (name,)


def _best(column: pd.Series) -> list[bool]:
    """Which rows are the best of their model and budget, where there are several."""
    value = pd.to_numeric(column.astype("string").str.split().str[0], errors="coerce")
    group = [value.index.get_level_values(name) for name in ("model", "asked (%)") if name in value.index.names]
    if not group:
        return [False] * len(value)
    by = value.groupby(group)
    return list(value.notna() & value.eq(by.transform("max")) & by.transform("count").gt(1))


def save(table: pd.DataFrame, name: str, tier: str = "tiny", out: str | Path = "") -> Path:
    """Write <name>.csv and <name>.md where ``style.save_figure`` writes; the path of the Markdown."""
    target = folder(table, tier, out)
    write_csv(target / f"{name}.csv", table)
    flat = flattened(table)
    for column in flat:
        digits = "{:g}" if column == "budget" else "{:.3f}" if "p (" in str(column) else "{:.1f}"
        said = (digits.format(cell) if isinstance(cell, float) else cell for cell in flat[column])
        flat[column] = ["–" if pd.isna(cell) else text for cell, text in zip(flat[column], said, strict=True)]
    below = f"\n{table.attrs['below']}\n" if table.attrs.get("below") else ""
    return write_atomic(target / f"{name}.md", flat.to_markdown(index=False, disable_numparse=True) + "\n" + below)
