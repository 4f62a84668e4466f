"""Bodies of requests: JSON, forms and files, to the requests of a service."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from vidcm.arguments import SYNONYMS
from vidcm.errors import UsageError
from vidcm.schema import suggest
from vidcm.serve.service import JobService
from vidcm.serve.uploads import Upload

JSON, FORM, URLENCODED = (
    "application/json",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
)
MAX_FILES, MAX_FIELDS, MAX_FIELD = 3, 64, 2**16
CHUNK = 2**16

RequestModel = TypeVar("RequestModel", bound=BaseModel)


class BadField(UsageError):
    """A field that is unknown or has another value than it may.

    Attributes:
        param: Its name.
        code: Of the error.
    """

    def __init__(self, message: str, param: str | None, code: str):
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Body:
    """A request's fields and files.

    Attributes:
        fields: By name, as JSON gives them or as texts.
        texts: Whether all values are texts, as in forms.
        files: (name, file) in their order.
    """

    fields: Mapping[str, Any]
    texts: bool
    files: list[tuple[str, UploadFile]]


async def read_body(request: Request) -> Body:
    """The body of a request.

    Raises:
        BadField: It is no JSON object or form, or a field is null or there twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON:
        return Body(_object(await request.body()), False, [])
    if kind not in (FORM, URLENCODED):
        kinds = f"{JSON} or {FORM}"
        raise BadField(f"the content type is {kind[:60]!r}; use {kinds}", None, "content_type")
    form = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD)
    return _form(form)


def as_request(kind: type[RequestModel], body: Body) -> RequestModel:
    """The fields of a body as a request. Raises BadField for the first that does not fit."""
    known = kind.model_fields
    for name in body.fields:
        if name not in known:
            there = SYNONYMS.get(name)
            hint = f"; it is called {there!r} here" if there in known else suggest(name, [*known])
            raise BadField(f"unknown field {name[:100]!r}{hint}", name[:100], "unknown_field")
    try:
        if body.texts:
            return kind.model_validate(body.fields, strict=False)
        return kind.model_validate_json(json.dumps(body.fields), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else None
        raise BadField(f"{name or 'the request'}: {first['msg']}", name, "invalid_value") from None


async def keep_files(service: JobService, body: Body, counts: Mapping[str, int]) -> list[Upload]:
    """Keep the files of a body in the service's folder.

    Args:
        service: Of jobs.
        body: Of the request.
        counts: Names that files may have, and how many of each.

    Raises:
        BadField: A file of another name, too many of one, or an empty one.
    """
    names = [name for name, _ in body.files]
    for name in names:
        if name not in counts:
            hint = suggest(name, list(counts))
            raise BadField(f"unknown file {name[:100]!r}{hint}", name[:100], "unknown_field")
        if names.count(name) > counts[name]:
            raise BadField(f"{name}: at most {counts[name]} file(s)", name, "invalid_value")
    kept: list[Upload] = []
    try:
        for name, file in body.files:
            kept.append(await run_in_threadpool(service.receive, _chunks(file), name))
    except BaseException:
        for upload in kept:
            upload.close()
        raise
    return kept


def _chunks(file: UploadFile) -> Iterator[bytes]:
    while chunk := file.file.read(CHUNK):
        yield chunk


def _object(text: bytes) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            name = next(n for n, _ in items if [k for k, _ in items].count(n) > 1)
            raise BadField(f"{name[:100]}: there twice", name[:100], "invalid_value")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def number(text: str) -> float | int:  # in JSON 1.0 is a whole number
        value = float(text)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value

    try:
        found = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
        )
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # fails for half a surrogate pair
    except (ValueError, RecursionError) as error:
        detail = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadField(f"the body is not JSON: {detail}", None, "invalid_json") from None
    if not isinstance(found, dict):
        raise BadField("the body is no JSON object", None, "invalid_json")
    for name, value in found.items():
        if value is None:
            raise BadField(
                f"{name[:100]} is null; leave it out for the default, or give a value",
                name[:100],
                "null_field",
            )
    return found


def _form(form: FormData) -> Body:
    """Fields of a form; `name[id]` is a field of an object, repeated ones are a list."""
    fields: dict[str, Any] = {}
    files: list[tuple[str, UploadFile]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append((name, value))
        elif name.endswith("[id]"):
            fields[name[:-4]] = {"id": value}
        elif name == "prompt_schedule":
            fields[name] = _json(name, value)
        elif name in fields:
            there = fields[name]
            fields[name] = [*(there if isinstance(there, list) else [there]), value]
        else:
            fields[name] = value
    return Body(fields, True, files)


def _json(name: str, text: str) -> Any:
    """A list in a form, with all of its values as texts."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadField(f"{name}: not JSON", name, "invalid_value") from None
    if not isinstance(found, list) or not all(isinstance(one, list) for one in found):
        raise BadField(f"{name}: expected [[frame, prompt], ...]", name, "invalid_value")
    return [[str(value) for value in one] for one in found]
