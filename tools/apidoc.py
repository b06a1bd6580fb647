"""Makes docs/api.md from the docstrings of the public names of agentd.elastic.

    python -m tools.apidoc            write it (make docs)
    python -m tools.apidoc --check    only say whether it is fresh
    python -m tools.apidoc --missing  list public names without a docstring that says something

The same source gives the same bytes on every supported Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.apinodes import Member
from tools.apisource import PACKAGE, REPO, ApiError, Entry, Module, Source, undocumented

PAGE = REPO / "docs" / "api.md"
RENEW = "make docs"
WIDTH = 100

HEAD = f"""# The elastic library

Every public name of `{PACKAGE}`, made from its docstrings by `{RENEW}`: edit those, not this page. The import
paths are torch's, `torch.distributed.elastic.X` being `{PACKAGE}.X`.
[torch-compatibility.md](torch-compatibility.md) compares name by name,
[extending.md](extending.md) builds agents and handlers step by step.
"""


@dataclass(frozen=True)
class Section:
    """A module as the page shows it: the names at home there, and those it offers from elsewhere."""

    module: Module
    entries: tuple[Entry, ...]
    guests: tuple[tuple[str, str], ...]
    """Each a name and the module that is its home."""


def sections(source: Source) -> list[Section]:
    """Each name once: in the package people import it from, not again where else it can be had."""
    entries: dict[tuple[str, str], Entry] = {}
    offered: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for module in source.public_modules:
        for name in sorted(module.exports or (), key=str.lower):
            entry = source.entry(module, name)
            thing = (entry.module.name, name)
            entries[thing] = entry
            offered[thing].append(module.name)
    homes = {thing: min(modules, key=_homeliness) for thing, modules in offered.items()}
    return [
        Section(
            module,
            tuple(entry for thing, entry in entries.items() if homes[thing] == module.name),
            tuple(
                (thing[1], homes[thing])
                for thing, modules in offered.items()
                if module.name in modules and homes[thing] != module.name
            ),
        )
        for module in source.public_modules
    ]


def _homeliness(module: str) -> tuple[bool, int, str]:
    # The top re-exports the main names; their home is the room they belong to.
    return module == PACKAGE, module.count("."), module


# Links.


class Links:
    """Turns a name in backticks into a link, where it can mean one thing only."""

    def __init__(self, found: Sequence[Section]) -> None:
        self._places: defaultdict[str, list[str]] = defaultdict(list)
        for section in found:
            self._places[section.module.name].append(section.module.name)
            for entry in section.entries:
                anchor = f"{section.module.name}.{entry.name}"
                self._places[entry.name].append(anchor)
                for member in entry.members:
                    self._places[f"{entry.name}.{member.name}"].append(f"{anchor}.{member.name}")

    def within(self, text: str, module: str, owner: str = "") -> str:
        """The text with links; `owner` is the class whose members may be named alone."""
        # What stands indented is code and stays as it is.
        parts = re.split(r"((?:^ {4}.*\n?)+)", text, flags=re.MULTILINE)
        return "".join(
            part if index % 2 else self._link_line(part, module, owner) for index, part in enumerate(parts)
        )

    def _link_line(self, text: str, module: str, owner: str) -> str:
        pieces = re.split(r"(`[^`]+`)", text)
        return "".join(
            self._link(piece, module, owner) if piece.startswith("`") else piece.replace("<", "&lt;")
            for piece in pieces
        )

    def _link(self, code: str, module: str, owner: str) -> str:
        name = code.strip("`").removesuffix("()")
        member = self._places.get(f"{owner}.{name}", [])
        places = member or self._places.get(name, []) or self._places.get(name.removeprefix(f"{module}."), [])
        near = [place for place in places if place.startswith(f"{module}.")]
        chosen = near if len(near) == 1 else places
        if len(chosen) != 1 or name == owner:
            return code
        return f"[{code}](#{chosen[0]})"


# The page.


def render(source: Source) -> str:
    """The whole page."""
    found = sections(source)
    links = Links(found)
    blocks = [HEAD, "\n".join(_contents(found))]
    for section in found:
        blocks += _section(section, links)
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def _contents(found: Sequence[Section]) -> Iterator[str]:
    yield "| module | promise |"
    yield "|---|---|"
    for section in found:
        promise = " ".join(section.module.doc.split("\n\n")[0].split()).replace("|", "\\|")
        yield f"| [`{section.module.name}`](#{section.module.name}) | {promise} |"


def _section(section: Section, links: Links) -> Iterator[str]:
    name = section.module.name
    yield f'<a id="{name}"></a>\n\n## `{name}`'
    yield links.within(section.module.doc, name)
    by_home: defaultdict[str, list[str]] = defaultdict(list)
    for guest, home in section.guests:
        by_home[home].append(f"[`{guest}`](#{home}.{guest})")
    for home, guests in sorted(by_home.items()):
        yield f"From [`{home}`](#{home}): {', '.join(guests)}."
    for kind in ("class", "function", "data"):
        for entry in section.entries:
            if entry.kind == kind:
                yield from _entry(entry, name, links)


def _entry(entry: Entry, module: str, links: Links) -> Iterator[str]:
    yield f'<a id="{module}.{entry.name}"></a>\n\n### `{entry.name}`'
    yield f"```python\n{_declaration(entry)}\n```"
    if bases := _bases(entry, module, links):
        yield bases
    if entry.doc:
        yield links.within(entry.doc, module, entry.name if entry.kind == "class" else "")
    members = "\n".join(_member(member, entry, module, links) for member in entry.members)
    if members:
        yield members


def _declaration(entry: Entry) -> str:
    if entry.kind == "data":
        return _typed(entry.name, entry.annotation, entry.value)
    if entry.kind == "function":
        assert entry.signature is not None
        return entry.signature.text(f"def {entry.name}", WIDTH)
    name = f"class {entry.name}"
    return name if entry.signature is None or _is_enum(entry) else entry.signature.text(name, WIDTH)


def _typed(name: str, annotation: str, value: str) -> str:
    return name + (f": {annotation}" if annotation else "") + (f" = {value}" if value else "")


def _bases(entry: Entry, module: str, links: Links) -> str:
    if any(base.partition("[")[0].endswith("Protocol") for base in entry.bases):
        return "A protocol: any object that has these members will do."
    bases = [base for base in entry.bases if base not in ("ABC", "object")]
    return f"Extends {links.within(' and '.join(f'`{base}`' for base in bases), module)}." if bases else ""


def _is_enum(entry: Entry) -> bool:
    return any(base.startswith("enum.") for base in entry.bases)


def _member(member: Member, entry: Entry, module: str, links: Links) -> str:
    marks = f" *({', '.join(member.marks)})*" if member.marks else ""
    if member.signature is not None:
        shown = member.signature.text(member.name, sys.maxsize)
    else:
        shown = _typed(member.name, member.annotation, member.value)
    anchor = f'<a id="{module}.{entry.name}.{member.name}"></a>'
    first, _, rest = links.within(member.doc, module, entry.name).partition("\n\n")
    lines = [f"- {anchor}**`{shown}`**{marks}" + (f": {' '.join(first.split())}" if first else "")]
    if rest:
        lines += ["", *(f"  {line}".rstrip() for line in rest.split("\n")), ""]
    return "\n".join(lines)


# The command.


def stale(page: Path = PAGE, source: Source | None = None) -> bool:
    """Whether the page differs from what the docstrings give."""
    return not page.exists() or page.read_text(encoding="utf-8") != render(source or Source())


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or look at it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.apidoc", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="only say whether docs/api.md is fresh")
    parser.add_argument("--missing", action="store_true", help="list names without a docstring")
    options = parser.parse_args(argv)
    try:
        if options.missing:
            missing = undocumented(Source())
            print("\n".join(missing) or "every public name has a docstring")
            return bool(missing)
        if options.check:
            return _check()
        PAGE.write_text(render(Source()), encoding="utf-8")
    except ApiError as error:
        print(f"apidoc: {error}", file=sys.stderr)
        return 1
    return 0


def _check() -> int:
    if not stale():
        return 0
    name = PAGE.relative_to(REPO)
    print(f"apidoc: {name} is stale: run `{RENEW}` and commit {name}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
