"""`vidcm completion`: a script that completes commands, options and choices in a shell."""

import argparse
import importlib
import shlex
from collections.abc import Iterator

from vidcm.cli import COMMANDS
from vidcm.cli.common import Parser, run
from vidcm.registry import TABLE

BASH = """\
_vidcm() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands} help"
  else
    case "${{COMP_WORDS[1]}} $previous" in
{values}
      *)
        case "${{COMP_WORDS[1]}}" in
{options}
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _vidcm vidcm
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def parser() -> argparse.ArgumentParser:
    p = Parser(
        "completion",
        "Print a script that completes commands, options and their choices.",
        "examples:\n"
        '  eval "$(vidcm completion bash)"      (in ~/.bashrc)\n'
        '  eval "$(vidcm completion zsh)"       (in ~/.zshrc, after compinit)\n'
        "  vidcm completion fish > ~/.config/fish/completions/vidcm.fish",
    )
    p.add_argument("shell", choices=("bash", "zsh", "fish"))
    return p


def main(argv: list[str] | None = None) -> int:
    return run(_completion, parser().parse_args(argv))


def _completion(args: argparse.Namespace) -> None:
    print({"bash": _bash(), "zsh": ZSH + _bash(), "fish": _fish()}[args.shell], end="")


def _actions(command: str) -> Iterator[tuple[str, argparse.Action]]:
    """The long options of a command; for edit, the options of all tasks."""
    for action in importlib.import_module(f"vidcm.cli.{command}").parser()._actions:
        name = next((o for o in action.option_strings if o.startswith("--")), None)
        if name and action.help != argparse.SUPPRESS:
            yield name, action


def _first_words(command: str) -> list[str]:
    """The words without dashes that may follow a command."""
    return {"edit": list(TABLE["task"]), "completion": ["bash", "zsh", "fish"]}.get(command, [])


def _bash() -> str:
    values, options = [], []
    for command in COMMANDS:
        words = [name for name, _ in _actions(command)]
        first = _first_words(command)
        if first:
            values.append(f'      "{command} {command}") words="{" ".join(first)}" ;;')
        options.append(f'          {command}) words="{" ".join(words)}" ;;')
        for name, action in _actions(command):
            if action.choices:
                values.append(
                    f'      "{command} {name}") words="{" ".join(map(str, action.choices))}" ;;'
                )
            elif action.nargs != 0:  # a value of the user's: files by default
                values.append(f'      "{command} {name}") ;;')
    values.append(f'      "help help") words="{" ".join(COMMANDS)}" ;;')
    return BASH.format(
        commands=" ".join(COMMANDS), values="\n".join(values), options="\n".join(options)
    )


def _fish() -> str:
    lines = []
    for command, summary in COMMANDS.items():
        lines.append(
            f"complete -c vidcm -f -n __fish_use_subcommand -a {command} -d {shlex.quote(summary)}"
        )
        here = f"complete -c vidcm -n '__fish_seen_subcommand_from {command}'"
        if first := _first_words(command):
            lines.append(f"{here} -f -a '{' '.join(first)}'")
        for name, action in _actions(command):
            kind = "" if action.nargs == 0 else " -r"
            kind = f" -x -a '{' '.join(map(str, action.choices))}'" if action.choices else kind
            text = shlex.quote(action.help or "")
            lines.append(f"{here} -l {name[2:]}{kind} -d {text}")
    return "\n".join(lines) + "\n"
