"""The report of `vidcm encode --scan`, as text or JSON."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidcm.data.buckets import Shape
    from vidcm.data.scan import Scan


def scan_json(found: "Scan") -> str:
    """One JSON object."""
    report = {
        "clips": found.clips,
        "left_out": found.left_out,
        "reasons": found.reasons,
        "shapes": {_name(shape): count for shape, count in found.shapes.items()},
        "videos": found.found,
        "suggested": [{"shape": s, "videos": n} for s, n in found.suggested.items()],
    }
    return json.dumps(report, ensure_ascii=False)


def scan_text(found: "Scan", fps: float) -> str:
    """What is left out, how the videos are distributed, and shapes for a config."""
    lines = [f"{reason}: {name}" for name, reason in sorted(found.left_out.items())]
    shapes = ", ".join(f"{_name(shape)} ({count})" for shape, count in found.shapes.items())
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items())
    lines += [f"{found.clips} clips of {shapes}", f"left out: {reasons or 'none'}"]
    if not found.suggested:
        return "\n".join(lines)
    for what, counts in found.found.items():
        lines.append(f"{what}: " + ", ".join(f"{name} {count:g}" for name, count in counts.items()))
    first, *further = found.suggested
    videos = ", ".join(f"{_name(shape)} for {count}" for shape, count in found.suggested.items())
    lines += [
        f"# shapes for these videos ({videos}); in `data` of a config:",
        f"num_frames: {first[0]}",
        f"size: [{first[1]}, {first[2]}]",
        f"buckets: [{', '.join(str(list(shape)) for shape in further)}]",
        f"fps: {fps:g}",
    ]
    options = "".join(f" --bucket {_name(shape)}" for shape in further)
    size = "x".join(map(str, first[1:]))
    lines.append(f"# or of encode: --frames {first[0]} --size {size}{options} --fps {fps:g}")
    return "\n".join(lines)


def _name(shape: "Shape") -> str:
    return "x".join(map(str, shape))
