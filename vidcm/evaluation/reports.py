"""Results of every kind as markdown, and the marks of the block they fill.

Needs neither torch nor numpy.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vidcm.errors import UsageError
from vidcm.evaluation.edit_report import edit_tables
from vidcm.evaluation.markdown import (
    Column,
    counted,
    figure,
    grid,
    measured_on,
    method,
    number,
    table,
)
from vidcm.evaluation.rows import Row, is_model_row


def _adherence(row: dict) -> str:
    score, low, high = (number(row["adherence"][k], 1, 100) for k in ("score", "low", "high"))
    return f"{score} ({low}-{high})"


QUALITY: tuple[Column, ...] = (
    ("evaluations", figure("evaluations", 0)),
    ("adherence", _adherence),
    ("PSNR, dB", figure("fidelity.psnr", 1)),
    ("SSIM", figure("fidelity.ssim", 3)),
    ("Fréchet", figure("frechet.distance", 2)),
    ("motion", figure("motion.ratio", 2)),
    ("diversity", figure("diversity.ratio", 2)),
    ("s/clip", figure("seconds.per_clip", 2)),
)
HAND_PROMPTS: tuple[Column, ...] = (
    ("as they are, %", figure("hand.score", 1, 100)),
    ("completed, %", figure("completed.score", 1, 100)),
    ("as captions, %", figure("template.score", 1, 100)),
)
CHANGES: tuple[Column, ...] = (  # of long clips
    ("drift", figure("drift", 2)),
    ("seam", figure("seam", 2)),
    ("motion", figure("motion", 2)),
    (
        "ms a frame",
        lambda row: number(
            row["seconds_per_frame"] if row["num_inference_steps"] else None, 1, 1e3
        ),
    ),
)


def quality_table(results: Mapping[str, Any]) -> str:
    """The rows' numbers, adherence by attribute, and the sentence on how they were measured.

    Args:
        results: of kind "quality".

    Raises:
        UsageError: no row is finished.
    """
    rows = {name: row["heldout"] for name, row in results["rows"].items() if "heldout" in row}
    if not rows:
        raise UsageError("these results have no finished row yet")
    chance = next(iter(rows.values()))["adherence"]["chance"]
    names = dict.fromkeys(a for row in rows.values() for a in row["adherence"]["attributes"])
    attributes = [
        (a.replace("_", " "), figure(f"adherence.attributes.{a}.score", 1, 100)) for a in names
    ]
    by_hand = [
        (n, row["hand_prompts"]) for n, row in results["rows"].items() if "hand_prompts" in row
    ]
    parts = [
        table("", QUALITY, rows.items()),
        table("adherence, %", attributes, rows.items()),
        *([table("prompts by hand", HAND_PROMPTS, by_hand)] if by_hand else []),
        method(results, f"guessing would score {number(chance, 1, 100)} %"),
    ]
    return "\n\n".join(parts) + "\n"


def steering_table(results: Mapping[str, Any]) -> str:
    """Guidance, then negative prompts."""
    protocol, rows = results["protocol"], results["rows"]
    by_role = {role: row["guidance"]["scales"] for role, row in rows.items() if "guidance" in row}
    scales, lines = list(by_role["student"]), []
    for title, key, factor, digits in (
        ("adherence, %", "adherence", 100, 1),
        ("moved, grey levels", "moved", 1, 2),
        ("cosine with the teacher's movement", "cosine", 1, 2),
    ):
        for role, by_scale in by_role.items():
            values = [by_scale[scale].get(key) for scale in scales]
            if any(value is not None for value in values):
                lines.append([f"{role}: {title}", *(number(v, digits, factor) for v in values)])
    kept = (
        ("it is named", figure("negative.named", 0, 100)),
        ("another is named", figure("negative.another", 0, 100)),
    )
    finished = [(role, row) for role, row in rows.items() if "negative" in row]
    steps = [f"{counted(count)} of the {role}" for role, count in protocol["steps"].items()]
    note = (
        f"{', '.join(steps)}; negative prompts at guidance {protocol['negative_scale']:g}, with "
        f"prompts that leave the {protocol['open']} open"
    )
    parts = [
        grid(["guidance", *scales], lines),
        table(f"clips that keep their {protocol['open']}, %", kept, finished),
        method(results, note),
    ]
    return "\n\n".join(parts) + "\n"


def long_table(results: Mapping[str, Any]) -> str:
    """Constant prompts, then prompts that change."""
    protocol, rows = results["protocol"], list(results["rows"].values())
    everything = {"all, first, %": "first.score", "all, last, %": "last.score"}
    action = {"action before, %": "first.action", "action after, %": "last.action"}
    constant, changing = ([r for r in rows if r["then"] is then] for then in (False, True))
    parts = [_long_grid(constant, everything)]
    if changing:
        frame = 1 + changing[0]["windows"] // 2 * (protocol["frames"] - 1)
        parts += [
            f"Another action from frame {frame} on:",
            _long_grid(changing, action | everything),
        ]
    note = f"for drift, prompts that leave {' and '.join(protocol['open'])} open"
    return "\n\n".join([*parts, method(results, note)]) + "\n"


def _long_grid(rows: list[dict], shares: dict[str, str]) -> str:
    columns = [("frames", figure("frames", 0))]
    columns += [(heading, figure(path, 1, 100)) for heading, path in shares.items()]
    named = [(f"{r['method']}, {counted(r['num_inference_steps'])}", r) for r in rows]
    named = [(n if r["num_inference_steps"] else r["method"], r) for n, r in named]
    return table("", [*columns, *CHANGES], named)


def long_edit_table(results: Mapping[str, Any]) -> str:
    """Edits of long clips, in windows and in pieces."""
    protocol, methods = results["protocol"], ("windows", "pieces")
    columns = [(f"PSNR, {m}", figure(f"{m}.psnr", 1)) for m in methods]
    columns += [(f"step, {m}", figure(f"{m}.step", 2)) for m in methods]
    piece = protocol["piece"]
    note = (
        f"{counted(protocol['steps'])}, clips of {protocol['frames']} frames, pieces of {piece}. "
        f"True clips have {piece} frames, so all but the first repeat every {piece - 1}, in a "
        f"shorter cycle every {piece - 2}"
    )
    return f"{table('', columns, results['rows'].items())}\n\n{method(results, note)}\n"


SERVING: tuple[Column, ...] = (
    ("clips/s", figure("clips_per_second", 2)),
    ("p50, s", figure("seconds.p50", 2)),
    ("p95, s", figure("seconds.p95", 2)),
    ("jobs in a forward", figure("batch", 1)),
    ("errors", figure("errors", 0)),
)


def serving_table(results: Mapping[str, Any]) -> str:
    """A server's throughput, batched and one by one, beside a bare pipeline."""
    protocol, rows = results["protocol"], results["rows"]
    seen = [row["memory"] for row in rows.values() if "memory" in row]
    memory = [", ".join(number(size, 0, 2**-20) for size in turns) for turns in seen]
    (environment,) = results["environments"]
    note = (
        f"{protocol['clients']} clients that ask for the next clip as soon as they have one, "
        f"{protocol['turns']} turns of {protocol['seconds']:g} s in turn with the bare pipeline, "
        f"{counted(protocol['num_inference_steps'])} a clip. Memory of the servers after each "
        f"turn: {'; '.join(memory)} MiB. Model {results['model']['name']}, "
        f"measured with {measured_on(environment)}, load "
        f"{environment['load_average'][0][0]:.1f} on {environment['cores']} cores at the start."
    )
    return f"{table('', SERVING, rows.items())}\n\n{note}\n"


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "quality": quality_table,
    "editing": edit_tables,
    "steering": steering_table,
    "long": long_table,
    "long-edits": long_edit_table,
    "serving": serving_table,
}


def markdown_of(results: Mapping[str, Any]) -> str:
    """The tables of results, by their kind."""
    return TABLES[results["kind"]](results)


def mark_of(results: Mapping[str, Any]) -> str:
    """The name of the block that the tables of results fill."""
    if results["kind"] == "quality":
        return "results"
    names = (name for rows in results["rows"].values() for name in rows)
    if results["kind"] == "editing" and any(
        is_model_row(name) and Row.parse(name).zero_shot for name in names
    ):
        return "given"
    return results["kind"]
