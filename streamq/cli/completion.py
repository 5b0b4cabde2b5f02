"""`streamq completion`: scripts for shells, made from the grammar. They are static: completing asks no broker and starts no Python."""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from streamq.cli.grammar import parser

__all__ = ["run"]


class Place(NamedTuple):
    """What can be typed after these words: more words, and options."""

    words: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]
    flags: tuple[tuple[str, str], ...]
    takes_files: bool


def run(options: argparse.Namespace) -> int:
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell]
    print("\n".join(write(list(_places(parser(), ())))))
    return 0


def _places(node: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[Place]:
    verbs: list[tuple[str, str]] = []
    flags: list[tuple[str, str]] = []
    takes_files = False
    children: list[tuple[str, argparse.ArgumentParser]] = []
    for action in node._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            verbs += [(name, helps.get(name, "")) for name in action.choices]
            children += list(action.choices.items())
        elif action.help == argparse.SUPPRESS:
            pass
        elif action.option_strings:
            flags += [(text, action.help or "") for text in action.option_strings]
        elif action.choices:
            verbs += [(str(choice), "") for choice in action.choices]
        else:
            takes_files = takes_files or action.metavar in ("FILE", "DIR")
    yield Place(words, tuple(verbs), tuple(flags), takes_files)
    for name, child in children:
        yield from _places(child, (*words, name))


def _bash(places: list[Place]) -> Iterator[str]:
    yield "# streamq completion for bash; to use it: source <(streamq completion bash)"
    yield "_streamq() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" place="" i choices files='
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield '        case "${COMP_WORDS[i]}" in -*) ;; *) case "$place ${COMP_WORDS[i]}" in'
    yield (
        "            " + "|".join(f'" {" ".join(place.words)}"' for place in places if place.words) + ') place="$place ${COMP_WORDS[i]}" ;;'
    )
    yield "        esac ;; esac"
    yield "    done"
    yield '    case "$place" in'
    for place in places:
        key = "".join(f" {word}" for word in place.words)
        choices = " ".join([name for name, _ in place.verbs] + [flag for flag, _ in place.flags])
        yield f'        "{key}") choices="{choices}"{" files=yes" if place.takes_files else ""} ;;'
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$choices" -- "$word"))'
    yield '    [ -n "$files" ] && [ "${word#-}" = "$word" ] && COMPREPLY+=($(compgen -f -- "$word"))'
    yield "    return 0"
    yield "}"
    yield "complete -F _streamq streamq"


def _zsh(places: list[Place]) -> Iterator[str]:
    yield "#compdef streamq"
    yield "# streamq completion for zsh; to use it: streamq completion zsh > a directory of $fpath, as _streamq"
    yield "_streamq() {"
    yield "    local place=''"
    yield "    local -a choices"
    yield "    local i files="
    yield "    for ((i = 2; i < CURRENT; i++)); do"
    yield '        case "$place $words[i]" in'
    yield "            " + "|".join(f'" {" ".join(place.words)}"' for place in places if place.words) + ') place="$place $words[i]" ;;'
    yield "        esac"
    yield "    done"
    yield '    case "$place" in'
    for place in places:
        key = "".join(f" {word}" for word in place.words)
        choices = " ".join(_zsh_choice(name, text) for name, text in (*place.verbs, *place.flags))
        yield f'        "{key}") choices=({choices}){" files=yes" if place.takes_files else ""} ;;'
    yield "    esac"
    yield "    _describe streamq choices"
    yield "    [[ -n $files ]] && _files"
    yield "}"
    yield 'compdef _streamq streamq 2>/dev/null || _streamq "$@"'


def _zsh_choice(name: str, text: str) -> str:
    plain = text.replace("%%", "%").replace("'", "").replace(":", " ")
    return f"'{name}:{plain}'"


def _fish(places: list[Place]) -> Iterator[str]:
    yield "# streamq completion for fish; to use it: streamq completion fish > ~/.config/fish/completions/streamq.fish"
    yield "complete -c streamq -f"
    for place in places:
        others = [name for name, _ in place.verbs]
        condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in place.words) or "__fish_use_subcommand"
        if place.words and others:
            condition += f"; and not __fish_seen_subcommand_from {' '.join(others)}"
        for name, text in place.verbs:
            yield f'complete -c streamq -n "{condition}" -a {name} -d {_fish_quoted(text)}'
        for flag, text in place.flags:
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            yield f'complete -c streamq -n "{condition}" {option} -d {_fish_quoted(text)}'
        if place.takes_files:
            yield f'complete -c streamq -n "{condition}" -F'


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'") + "'"
