"""Help of commands with many options: under headings."""

from collections.abc import Mapping

import click

REST = "General"
"""The heading of options that no section names, --help among them; the last one."""


class SectionedCommand(click.Command):
    """A command whose help has its options under headings; `sections`: heading → names of options, blank between."""

    sections: Mapping[str, str] = {}

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
