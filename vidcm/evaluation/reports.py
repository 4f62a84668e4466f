"""Results of every kind as markdown, and the marks of the block they fill.

Needs neither torch nor numpy.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vidcm.evaluation.edit_report import edit_tables
from vidcm.evaluation.long_report import long_edit_table, long_table
from vidcm.evaluation.quality_report import quality_table
from vidcm.evaluation.rows import Row, is_model_row
from vidcm.evaluation.steering_report import steering_table

TABLES: dict[str, Callable[[dict], str]] = {
    "quality": quality_table,
    "editing": edit_tables,
    "steering": steering_table,
    "long": long_table,
    "long-edits": long_edit_table,
}


def markdown_of(results: dict) -> str:
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
