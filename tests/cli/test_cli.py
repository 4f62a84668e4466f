"""The command skeleton: dispatch, argument types, and every way a command can end."""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import vidcm
from vidcm.cli import COMMANDS, argument_types, common, main, options
from vidcm.errors import UsageError, VidcmError

REPO = Path(vidcm.__file__).parents[1]
HEAVY = ("torch", "numpy", "av", "deepspeed", "einops", "PIL", "matplotlib")


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=60, **options)


# --- dispatch -------------------------------------------------------------------------------------


def test_dispatch_gives_the_rest_to_the_command_and_returns_its_code(monkeypatch):
    seen = []
    fake = SimpleNamespace(main=lambda argv: seen.append(argv) or 7)
    monkeypatch.setitem(sys.modules, "vidcm.cli.generate", fake)
    assert main(["generate", "--prompt", "a man walks", "--help"]) == 7
    assert seen == [["--prompt", "a man walks", "--help"]]


def test_help_lists_each_command_on_one_line(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, summary in COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(summary)]
    assert max(map(len, lines)) <= 80


def test_no_command_is_help_on_stderr_and_2(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: vidcm <command>" in err


@pytest.mark.parametrize(
    "word, expected",
    [("genrate", "did you mean 'generate'?"), ("xyzzy", "commands are train, generate, encode")],
)
def test_an_unknown_command_is_one_line_with_a_hint(capsys, word, expected):
    assert main([word, "--prompt", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: unknown command {word!r}")
    assert expected in err and err.count("\n") == 1


def test_an_interrupt_while_a_command_is_imported_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("vidcm.cli.importlib.import_module", interrupted)
    assert main(["generate"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_help_of_help_is_the_help(capsys):
    assert main(["help", "help"]) == 0 and "usage: vidcm" in capsys.readouterr().out


def test_help_of_a_command_is_its_own(capsys):
    assert main(["help"]) == 0 and "usage: vidcm <command>" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["help", "edit", "inpaint"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: vidcm edit inpaint [-h]")
    assert main(["help", "genrate"]) == 2 and "'generate'" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vidcm {vidcm.__version__}\n"


TOOLS = {path.stem for path in (REPO / "tools").glob("*.py")}


@pytest.mark.parametrize("name", sorted(TOOLS - {"check_comfy"}))  # it runs in another program
def test_each_tool_is_its_command(name):
    assert name in COMMANDS
    text = (REPO / "tools" / f"{name}.py").read_text()
    assert f"from vidcm.cli.{name} import main" in text
    assert len(text.splitlines()) <= 8


# --- imports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["import vidcm", "from vidcm.cli import main; main(['--help'])"])
def test_nothing_heavy_is_imported_and_the_answer_is_fast(code):
    """Cases: A12."""
    check = f"import sys; print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = python(f"{code}\n{check}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0 and result.stderr == "[]\n"
    # CPU seconds of the child, not wall time: the machine may be busy with other things
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 1.0, f"{code} took {used:.2f} s"


def installed_from() -> set[str]:
    """The folders that pip installed vidcm from."""
    origins = (d.read_text("direct_url.json") for d in metadata.distributions(name="vidcm"))
    return {json.loads(origin)["url"].removeprefix("file://") for origin in origins if origin}


@pytest.mark.skipif(
    str(REPO) not in installed_from(), reason="needs pip install -e . of this clone"
)
def test_a_folder_of_the_same_name_does_not_hide_the_installed_package(tmp_path):
    """As in the folder where one has just cloned it."""
    (tmp_path / "vidcm").mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", "from vidcm import __version__"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_unknown_attribute_of_the_package_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="no attribute 'VideoPipelin'"):
        vidcm.VideoPipelin  # noqa: B018
    assert "VideoPipeline" in dir(vidcm)


# --- completion and doctor ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, expected",
    [
        (["gen"], ["generate"]),
        (["generate", "--sol"], ["--solver"]),
        (["generate", "--solver", ""], ["euler", "heun", "dpm"]),
        (["edit", "inp"], ["inpaint"]),
        (["edit", "inpaint", "--ma"], ["--mask"]),
        (["help", "ben"], ["benchmark"]),
        (["completion", "f"], ["fish"]),
        (["generate", "--output", ""], []),  # the shell's own completion of files
    ],
)
def test_bash_completes_commands_options_and_choices(words, expected, capsys):
    assert main(["completion", "bash"]) == 0
    line = " ".join(f"'{word}'" for word in ["vidcm", *words])
    script = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _vidcm\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.split() == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS) and "interpolate_frames" in script


def test_doctor_generates_a_clip_and_names_what_is_missing(capsys, monkeypatch):
    from vidcm.cli import doctor

    assert doctor.main(["--json"]) == 0
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["generation"]["state"] == "ok" and "9 frames" in found["generation"]["detail"]
    assert found["weights"]["detail"].startswith("4 bundled models")

    def broken():
        raise OSError("no space\nleft")

    monkeypatch.setattr(doctor, "_generation", broken)
    monkeypatch.setitem(doctor.OPTIONAL, "nosuchmodule", ("nothing", "nothing"))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "failed  generation: OSError: no space left\n" in out
    assert "note    nosuchmodule: not installed; nothing; pip install -e '.[nothing]'" in out


# --- endings --------------------------------------------------------------------------------------


def ending(error: BaseException | None, capsys) -> tuple[int, str]:
    def body(args: argparse.Namespace) -> int | None:
        if error is not None:
            raise error
        return None

    code = common.run(body, argparse.Namespace())
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def test_codes_of_success(capsys):
    assert ending(None, capsys) == (0, "")
    assert common.run(lambda args: args.code, argparse.Namespace(code=3)) == 3


@pytest.mark.parametrize(
    "error, code, line",
    [
        (VidcmError("clip.mp4: no video stream"), 1, "clip.mp4: no video stream"),
        (UsageError("size 63: use 56 or 64"), 2, "size 63: use 56 or 64"),
        (VidcmError("two\nlines"), 1, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "out.mp4"), 1, "out.mp4: No space left on device"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "internal: ZeroDivisionError: division by zero"
            " (set VIDCM_DEBUG=1 for the traceback; please report)",
        ),
    ],
)
def test_every_failure_is_one_line(monkeypatch, capsys, error, code, line):
    monkeypatch.delenv("VIDCM_DEBUG", raising=False)
    assert ending(error, capsys) == (code, f"error: {line}\n")


def test_debug_lets_unexpected_errors_through_and_only_them(monkeypatch, capsys):
    monkeypatch.setenv("VIDCM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError(), capsys)
    assert ending(VidcmError("no"), capsys) == (1, "error: no\n")


def test_out_of_memory_gives_advice(capsys):
    """Cases: A10."""
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (MemoryError(), torch.OutOfMemoryError("tried 3 GiB"), refused.value):
        code, err = ending(error, capsys)
        assert code == 1 and err.count("\n") == 1
        assert err.startswith("error: out of memory (") and "lower the batch size" in err


TERMINATED = """
import sys, time, argparse
from vidcm.cli.common import run
def body(args):
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        time.sleep(0.3)  # a cleanup that takes its time
        print("cleaned", flush=True)
sys.exit(run(body, argparse.Namespace()))
"""


@pytest.mark.parametrize(
    "signals, code, line",
    [
        ([signal.SIGINT], 130, "error: interrupted\n"),
        ([signal.SIGTERM], 143, "error: terminated\n"),
        ([signal.SIGTERM, signal.SIGTERM], 143, "error: terminated\n"),
    ],
)
def test_signals_end_with_their_code_after_the_cleanup(signals, code, line):
    """Cases: A13."""
    command = [sys.executable, "-c", TERMINATED]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=REPO) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for number in signals:
            child.send_signal(number)
            time.sleep(0.1)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (code, "cleaned\n", line)


def test_a_pipe_of_the_work_itself_that_breaks_is_an_error(capfd):
    code = common.run(lambda args: os.write(broken_pipe(), b"x"), argparse.Namespace())
    assert code == 1 and "internal: BrokenPipeError" in capfd.readouterr().err


def broken_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def test_sigterm_handler_of_the_caller_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    common.run(lambda args: 0, argparse.Namespace())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_is_no_error_of_ours(lines, unbuffered):
    code = (
        "import sys, time, argparse; from vidcm.cli.common import run\n"
        "time.sleep(0.2)\n"
        f"sys.exit(run(lambda args: print('line\\n' * {lines}), argparse.Namespace()))"
    )
    read, write = os.pipe()
    pipe = subprocess.PIPE
    command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=write, stderr=pipe, env=env, cwd=REPO) as child:
        os.close(write)
        os.close(read)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (141, b"")


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["help"], ["generate", "--help"], ["edit", "--help"]]
)
def test_help_that_cannot_be_written_is_an_error(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vidcm", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPO)
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr and done.stderr.count("\n") == 1


def test_a_closed_stdout_is_no_error():
    line = "from vidcm.cli.common import run; import argparse, sys;"
    line += "sys.exit(run(lambda _: print('x'), argparse.Namespace()))"
    command = f'{sys.executable} -c "{line}" >&-'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, cwd=REPO)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stderr_is_none_either_and_no_file_takes_its_place(tmp_path, closed):
    line = "from vidcm.cli.common import run; import argparse, os, sys, tqdm;"
    line += (
        "body = lambda _: (print('x', file=sys.stderr), list(tqdm.tqdm([1])), os.write(2, b'x'),"
    )
    line += " open('new', 'wb').fileno() > 2 or sys.exit(9))[3] and 0;"
    line += "sys.exit(run(body, argparse.Namespace()))"
    command = f'{sys.executable} -c "{line}" {closed}'
    done = subprocess.run(command, shell=True, cwd=tmp_path, env={"PYTHONPATH": str(REPO)})
    assert done.returncode == 0 and not (tmp_path / "new").read_bytes()


def test_letters_that_the_terminal_lacks_are_escaped():
    line = "from vidcm.cli.common import run; import argparse, sys;"
    line += "sys.exit(run(lambda _: print('m\\xe4nn'), argparse.Namespace()))"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", line]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "m\\xe4nn\n", "")
    command = [sys.executable, "-m", "vidcm", "evaluate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env)
    assert done.returncode == 0 and "Fr\\xe9chet" in done.stdout, done.stderr


def test_output_that_cannot_be_written_is_named():
    line = "from vidcm.cli.common import run; import argparse, sys;"
    line += "sys.exit(run(lambda _: print('x'), argparse.Namespace()))"
    command = f'{sys.executable} -c "{line}" >/dev/full'
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    done = subprocess.run(command, shell=True, stderr=pipe, text=True, cwd=REPO, env=env)
    expected = "error: cannot write to stdout: No space left on device; the work is done\n"
    assert (done.returncode, done.stderr) == (1, expected)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices(name):
    """Cases: A09."""
    assert argument_types.device(name) == name
    for wrong in (f"{name} ", f"{name}:", f"{name}:x", f"{name}:-1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="cpu, cuda, or one GPU"):
            argument_types.device(wrong)


# --- arguments ------------------------------------------------------------------------------------


def parser() -> common.Parser:
    result = common.Parser("fake", "Does nothing, and says so.")
    result.add_argument("--prompt", required=True)
    result.add_argument("--steps", type=argument_types.integer(1, 4), default=4)
    result.add_argument("--guidance", type=argument_types.number(0, 20))
    result.add_argument("--speed", type=argument_types.number(0))
    result.add_argument("--seed", type=argument_types.seed)
    result.add_argument("--frames", type=argument_types.positive_int)
    result.add_argument("--skip", type=argument_types.integer(0))
    result.add_argument("--file", type=argument_types.existing_file)
    result.add_argument("--folder", type=argument_types.output_folder)
    result.add_argument("--size", type=argument_types.sides("HEIGHTxWIDTH"))
    result.add_argument("--output", type=argument_types.clip_output)
    return result


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(argv)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_no_arguments_where_one_is_required_shows_what_the_command_is(capsys):
    """Cases: A01."""
    err = refused(capsys)
    assert err.startswith("usage: vidcm fake") and "Does nothing, and says so." in err
    assert "--prompt" in err.splitlines()[-1] and "see vidcm fake --help" in err


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--promt", "x"], "unknown option '--promt'; did you mean '--prompt'?"),
        (["--prom=x"], "unknown option '--prom'; did you mean '--prompt'?"),
        (["--prompt", "x", "more"], "unrecognized arguments: more"),
        (["--steps", "0"], "argument --steps: got '0', expected a whole number from 1 to 4"),
        (["--steps", "5"], "got '5', expected a whole number from 1 to 4"),
        (["--steps", "1.5"], "got '1.5', expected a whole number from 1 to 4"),
        (["--steps", ""], "got '', expected a whole number"),
        (["--frames", "0"], "got '0', expected a whole number, 1 or more"),
        (["--skip", "-1"], "got '-1', expected a whole number, 0 or more"),
        (["--seed", "-1"], "got '-1', expected a whole number from 0 to 9223372036854775807"),
        (["--seed", str(2**63)], "expected a whole number from 0 to"),
        (["--seed", "9" * 9999], "...', expected a whole number"),
        (["--guidance", "nan"], "got 'nan', expected a number from 0 to 20"),
        (["--guidance", "20.1"], "got '20.1', expected a number from 0 to 20"),
        (["--speed", "inf"], "got 'inf', expected a number, 0 or more"),
        (["--speed", "fast"], "got 'fast', expected a number, 0 or more"),
        (["--file", "/nowhere/clip.mp4"], "no such file '/nowhere/clip.mp4'"),
        (["--file", "/"], "'/' is a folder, expected a file"),
        (["--size", "x"], "got 'x', expected HEIGHTxWIDTH, as 64x128"),
        (["--size", "64x-1"], "got '64x-1', expected HEIGHTxWIDTH, as 64x128"),
        (["--output", ""], "got '', expected a file name with an extension, as clip.mp4"),
        (["--output", "-"], "got '-', expected a file name with an extension"),
        (["--output", "noext"], "got 'noext', expected a file name with an extension"),
        (["--folder", " "], "got an empty name, expected that of a folder"),
        (["--folder", __file__], "test_cli.py' is a file, expected a folder"),
    ],
)
def test_bad_arguments_are_one_line_that_teaches(capsys, argv, expected):
    err = refused(capsys, *argv)
    assert err.startswith("error: ") and expected in err
    assert err.count("\n") == 1 and len(err) < 200


def test_features_do_not_overwrite_what_is_no_model(tmp_path, capsys):
    from vidcm.cli import export

    (tmp_path / "thesis.txt").touch()
    arguments = ["--features", "run", "--output", str(tmp_path), "--overwrite"]
    assert export.main(arguments) == 2
    assert "is no model folder, and --overwrite would replace all" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    "script, shown",
    [
        ("/usr/bin/vidcm", "vidcm generate"),
        ("/src/vidcm/__main__.py", "python -m vidcm generate"),
        ("tools/generate.py", "python tools/generate.py"),
        ("/usr/bin/pytest", "vidcm generate"),
    ],
)
def test_usage_and_examples_name_the_program_as_it_was_called(monkeypatch, script, shown):
    from vidcm.cli.generate import parser as generate

    monkeypatch.setattr(sys, "argv", [script])
    text = generate().format_help()
    assert text.startswith(f"usage: {shown} [-h]")
    assert text.split("examples:\n")[1].count(shown) == 5


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "vidcm", "genrate"], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 2 and "did you mean 'generate'" in done.stderr


def test_a_misspelt_file_finds_its_neighbour(tmp_path, capsys):
    (tmp_path / "walking.mp4").touch()
    assert "did you mean 'walking.mp4'?" in refused(capsys, "--file", str(tmp_path / "walkin.mp4"))


def test_good_arguments_arrive_as_they_are(tmp_path):
    file = tmp_path / "a.txt"
    file.touch()
    args = parser().parse_args(
        ["--prompt", "--dashes and spaces", "--seed", str(2**63 - 1), "--guidance", "0"]
        + ["--steps=4", "--file", str(file)]
    )
    assert (args.prompt, args.seed, args.guidance) == ("--dashes and spaces", 2**63 - 1, 0.0)
    assert (args.steps, args.file) == (4, file)


def test_art_is_the_option_s_or_the_environment_s(monkeypatch):
    monkeypatch.setenv("VIDCM_LPC_ART", "theirs")
    assert options.art_of(argparse.Namespace(art="mine")) == "mine"
    assert options.art_of(argparse.Namespace(art=None)) == "theirs"
    monkeypatch.delenv("VIDCM_LPC_ART")
    with pytest.raises(UsageError, match="give --art, or set VIDCM_LPC_ART"):
        options.art_of(argparse.Namespace(art=None))
