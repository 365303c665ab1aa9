"""Help texts of the commands: options, one sentence or two, and the usual value."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter


class HelpFormatter(DefaultHelpFormatter):
    """Formats the help of all commands, in the words of the command line and of YAML.

    The group of an option is left out where its name is in one group only.
    """

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 26, **options})
        self._names: list[str] = []

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *args: Any) -> None:
        """Adds the usage, the first part of a help text."""
        shown = [action for action in actions if _is_shown(action)]
        self._names = [action.dest.rpartition(".")[2] for action in shown]
        super().add_usage(usage, shown, *args)

    def add_argument(self, action: argparse.Action) -> None:
        """Adds an option."""
        if _is_shown(action):
            super().add_argument(action)

    def _expand_help(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._HelpAction):
            return "Show this help and exit."
        text, default = in_words(action.help or ""), _written(action.default)
        is_option = bool(action.option_strings) and action.nargs != 0
        # kept in one line by non-breaking spaces
        suffix = f" [default: {default}]".replace(": ", ":\xa0")
        return f"{text}{suffix}" if is_option and default else text

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line.replace("\xa0", " ") for line in super()._split_lines(text, width)]

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):
            return "".join(map(self._format_action, self._iter_indented_subactions(action)))
        return super()._format_action(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        # with a + at its end, an option adds to a list
        names = [name for name in action.option_strings if not name.endswith("+")]
        group, _, name = action.dest.rpartition(".")
        if group and self._names.count(name) == 1:
            names = [f"--{name}"]
        usual = self._get_default_metavar_for_optional(action)
        value = "" if action.nargs == 0 else f" {self._format_args(action, usual)}"
        return f"{', '.join(names)}{value}"


class ShowHelp(argparse.Action):
    """Prints the text that `const` makes of the parser, and exits."""

    const: Callable[[ArgumentParser], str]

    def __call__(self, parser: Any, *_: Any) -> None:
        """Prints the text."""
        sys.stdout.write(self.const(parser))
        parser.exit()


def in_words(text: str) -> str:
    """A docstring's text without the marks of code, with YAML's null, true and false.

    Example:
        >>> in_words('`"mean"`, or None for `dim`')
        'mean, or null for dim'
    """
    text = re.sub(r'`([^`]*)`|"([\w.+-]+)"', lambda found: found[2] or _unquoted(found[1]), text)
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return " ".join(text.split())


def _unquoted(code: str) -> str:
    # the quotes of a mapping are to be typed
    return code if {*code} & {*"[{"} else code.replace('"', "")


def _is_shown(action: argparse.Action) -> bool:
    # the parser adds an option for the help of each class in a type
    is_of_class = any(name.endswith(".help") for name in action.option_strings)
    return action.help != argparse.SUPPRESS and not is_of_class


def _written(default: Any) -> str:
    """A default as it is written on the command line; empty if there is none worth a word."""
    if default in (None, argparse.SUPPRESS, (), []):
        return ""
    return default if isinstance(default, str) else json.dumps(default)
