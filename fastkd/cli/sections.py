"""What a command is besides its function: help under headings, options by the names that people know, hints."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from fastkd.cli.aliases import as_declared, with_hint

REST = "General"
"""The heading of options that no section names, --help among them; the last one."""


class SectionedCommand(click.Command):
    """A command whose help has its options under headings; `sections`: heading → names of options, blank between.

    perform: what it does with its options, for `fastkd/cli/calls.py`: gives the result and the text for people.
    """

    sections: Mapping[str, str] = {}
    perform: Callable[[dict[str, Any]], tuple[dict[str, Any], str]]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """As click's, with the options of other projects and a hint where a value is nearly another."""
        try:
            return super().parse_args(context, as_declared(self, args))
        except click.BadParameter as error:
            raise with_hint(error) from None

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes each option once: in the section that names it, else under REST."""
        records = {
            (param.name or "").replace("_", "-"): record
            for param in self.get_params(context)
            if (record := param.get_help_record(context)) is not None
        }
        headed = {title: names.split() for title, names in self.sections.items()}
        named = {name for names in headed.values() for name in names}
        headed[REST] = [name for name in records if name not in named]
        for title, names in headed.items():
            with formatter.section(title if self.sections else "Options"):
                formatter.write_dl([records[name] for name in names])
