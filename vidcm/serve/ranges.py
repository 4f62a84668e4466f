"""Parts of a file over HTTP, which some browsers want of videos (RFC 9110, 14)."""

import re

from starlette.exceptions import HTTPException
from starlette.responses import Response


def ranged(content: bytes, kind: str, wanted: str) -> Response:
    """A file, or one range of its bytes.

    Args:
        content: The file.
        kind: Its media type.
        wanted: The header Range. What is not one range of bytes is answered with all of it.

    Raises:
        HTTPException: 416, where the range is beyond the end.
    """
    size, headers = len(content), {"accept-ranges": "bytes"}
    found = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", wanted.strip())
    if found is None or found.group() == "bytes=-":
        return Response(content, media_type=kind, headers=headers)
    first, last = found.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if first and last and int(last) < start:  # no valid range
        return Response(content, media_type=kind, headers=headers)
    if start >= size:
        raise HTTPException(416, f"the file has {size} bytes", {"content-range": f"bytes */{size}"})
    headers["content-range"] = f"bytes {start}-{end}/{size}"
    return Response(content[start : end + 1], 206, media_type=kind, headers=headers)
