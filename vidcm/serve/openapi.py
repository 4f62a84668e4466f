"""The parts of the OpenAPI document that FastAPI does not find by itself."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from vidcm.serve.bodies import FORM, JSON
from vidcm.serve.guard import OPEN
from vidcm.serve.limits import ServeLimits
from vidcm.serve.replies import ErrorReply

MEANINGS = {
    400: "Asked wrongly",
    403: "A page of another server asked",
    404: "There is no such thing, or no longer",
    408: "The body did not come in time",
    409: "There is no result yet, or none",
    413: "Too large",
    416: "The range is beyond the end of the file",
    429: "Too many jobs wait; Retry-After says for how long",
    500: "The job failed",
    503: "The server is about to stop",
}
BINARY = {"type": "string", "format": "binary"}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The descriptions of failures, for `responses`."""
    return {code: {"model": ErrorReply, "description": MEANINGS[code]} for code in statuses}


def request_body(
    kind: type[BaseModel], files: Mapping[str, int], limits: ServeLimits
) -> dict[str, Any]:
    """The description of a body: JSON, or a form with files.

    Args:
        kind: Its fields.
        files: Names of files, and how many there may be of each.
        limits: Of the server.
    """
    schema = _inlined(kind.model_json_schema())
    schema["properties"]["num_frames"]["maximum"] = limits.max_frames
    schema["properties"]["num_inference_steps"]["maximum"] = limits.max_steps
    parts = {
        name: BINARY if count == 1 else {"type": "array", "items": BINARY, "maxItems": count}
        for name, count in files.items()
    }
    form = {**schema, "properties": {**schema["properties"], **parts}}
    content = {JSON: {"schema": schema}, FORM: {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI, guarded: bool) -> None:
    """Make the document of an application true.

    Args:
        app: With all routes.
        guarded: Whether it asks for credentials.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            for path, methods in found["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)  # they are 400 here
                    if guarded and path not in OPEN:
                        operation["security"] = [{"basic": []}, {"bearer": []}]
                        operation["responses"]["401"] = _failure("Wrong or missing credentials")
            schemas = found["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            if guarded:
                found["components"]["securitySchemes"] = {
                    "basic": {"type": "http", "scheme": "basic"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                }
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document


def _failure(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorReply"}
    return {"description": text, "content": {JSON: {"schema": schema}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$defs`, its references replaced by what they point to."""
    definitions = schema.get("$defs", {})

    def inline(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                rest = {key: value for key, value in part.items() if key != "$ref"}
                return inline({**definitions[part["$ref"].rpartition("/")[2]], **rest})
            return {key: inline(value) for key, value in part.items() if key != "$defs"}
        return [inline(one) for one in part] if isinstance(part, list) else part

    return inline(schema)
