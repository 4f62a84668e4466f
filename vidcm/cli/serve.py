"""`vidcm serve`: a page, and an HTTP API in OpenAI's videos form, that make and edit clips."""

import argparse
import importlib.util
import ipaddress
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vidcm.cli.argument_types import existing_file, existing_folder, integer
from vidcm.cli.common import Parser, run
from vidcm.cli.options import add_device
from vidcm.errors import UsageError
from vidcm.settings import MAX_FRAMES, MAX_SIDE, MAX_STEPS, find_pipeline

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vidcm.serve.service import JobService

PARTS = ("fastapi", "uvicorn", "multipart", "prometheus_client", "gradio")  # of the extra web
AUTH = "VIDCM_AUTH"  # variable of the environment
MIB = 2**20


def parser() -> Parser:
    p = Parser(
        "serve",
        "Serve models: a page for browsers, and an API in the form of OpenAI's videos API that\n"
        "makes and edits clips. Jobs live in memory; nothing is left when the server stops.",
        "examples:\n"
        "  vidcm serve\n"
        "  vidcm serve --checkpoint lpc-64 --checkpoint my-model --port 8080\n"
        "  vidcm serve --runs runs   (curves and samples of training, on the page)\n"
        "  vidcm serve --host 0.0.0.0 --auth-file auth.txt   (USER:PASSWORD in the file)",
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen on")
    p.add_argument("--port", type=integer(0, 65535), default=8000, help="0 for any that is free")
    who = p.add_mutually_exclusive_group()
    who.add_argument(
        "--auth",
        metavar="USER:PASSWORD",
        help=f"who may ask (default: ${AUTH}, else everybody; other users of this machine can read "
        "options of commands)",
    )
    who.add_argument("--auth-file", type=existing_file, metavar="FILE", help="the same in a file")
    p.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        help="a bundled model or a pipeline folder; may be repeated (default: lpc-64)",
    )
    p.add_argument(
        "--runs",
        action="append",
        default=[],
        type=existing_folder,
        metavar="DIR",
        help="a folder with training runs that the page may look into; may be repeated",
    )
    p.add_argument("--no-page", dest="page", action="store_false", help="the API alone")
    add_device(p)
    bounds = p.add_argument_group("limits")
    for name, most, default, text in (
        ("queue", 10_000, 32, "jobs that may wait; beyond, requests are answered 429"),
        ("frames", MAX_FRAMES, 129, "frames of a clip"),
        ("size", MAX_SIDE, 256, "height or width in pixels"),
        ("steps", MAX_STEPS, 100, "sampling steps"),
        ("upload", 10_000, 20, "MiB of a request with its files"),
        ("batch", 256, 8, "requests of one kind that are made in one forward"),
    ):
        bounds.add_argument(f"--max-{name}", type=integer(1, most), default=default, help=text)
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_serve, parser().parse_args(argv))


def _serve(args: argparse.Namespace) -> None:
    if missing := [name for name in PARTS if importlib.util.find_spec(name) is None]:
        raise UsageError(f"vidcm serve needs {', '.join(missing)}: pip install -e '.[web]'")
    from vidcm.serve.credentials import Credentials
    from vidcm.serve.limits import ServeLimits

    words = args.auth or _auth_of(args.auth_file)
    credentials = Credentials.parse(words) if words is not None else None
    local = _is_loopback(args.host)
    if credentials is None and not local:
        raise UsageError(
            f"--host {args.host} lets other machines ask; add --auth-file (or set {AUTH})"
        )
    names = args.checkpoint or ["lpc-64"]
    for name in names:
        find_pipeline(name)
    limits = ServeLimits(
        max_queue=args.max_queue,
        max_frames=args.max_frames,
        max_size=args.max_size,
        max_steps=args.max_steps,
        max_upload=args.max_upload * MIB,
        max_batch=args.max_batch,
    )

    from vidcm.serve.server import bind, make_server

    with bind(args.host, args.port) as listener:
        from vidcm.serve.app import create_app
        from vidcm.serve.checkpoints import Checkpoint
        from vidcm.serve.page.mount import mount_page
        from vidcm.serve.service import JobService

        checkpoints = [Checkpoint.load(name, limits, args.device) for name in names]
        with JobService(checkpoints, limits) as service:
            hosts = frozenset({"localhost", "127.0.0.1", "::1", args.host}) if local else None
            app = create_app(service, credentials, hosts)
            host = f"[{args.host}]" if ":" in args.host else args.host
            address = f"http://{host}:{listener.getsockname()[1]}"
            print(f"{', '.join(service.checkpoints)} at {address}/v1/videos", flush=True)
            if args.page:
                uploads = service.private_folder()
                mount_page(app, partial(_build_page, service, args.runs, uploads), uploads)
                print(f"the page at {address}", flush=True)
            make_server(app, service).run(sockets=[listener])


def _build_page(service: "JobService", runs: list[Path], uploads: Path) -> "FastAPI":
    """The page; only here gradio is imported, while the API answers already."""
    from vidcm.serve.page.build import build

    return build(service, runs, uploads)


def _auth_of(file: Path | None) -> str | None:
    """USER:PASSWORD from a file or the environment."""
    if file is None:
        return os.environ.get(AUTH)
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text; write USER:PASSWORD into it") from None


def _is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
