"""The public names of agentd.elastic as its source has them. Imports none of it.

Read with `ast`, so that every Python gives the same answer, no optional dependency is needed and the
docstring below a field, which no run-time object carries, is found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tools import apinodes
from tools.apinodes import Member, Node, Signature

REPO = Path(__file__).resolve().parent.parent
PACKAGE = "agentd.elastic"

_TORCHS = """
    agent.server agent.server.api agent.server.health_check_server agent.server.local_elastic_agent
    events events.api events.handlers
    metrics metrics.api
    multiprocessing multiprocessing.api multiprocessing.redirects multiprocessing.tail_log
    multiprocessing.errors multiprocessing.errors.error_handler multiprocessing.errors.handlers
    rendezvous rendezvous.api rendezvous.registry rendezvous.static_tcp_rendezvous rendezvous.utils
    timer timer.api timer.debug_info_logging timer.file_based_local_timer timer.local_timer
    utils utils.api utils.distributed utils.log_level utils.logging utils.process_state utils.store
"""
_OURS = "metrics.prometheus numa rendezvous.in_memory utils.stores utils.tcp_store"
PUBLIC = (PACKAGE, *(f"{PACKAGE}.{name}" for name in sorted(f"{_TORCHS} {_OURS}".split())))
"""What users import: the modules at torch's paths, and those that only this library has. Others are inner."""


class ApiError(Exception):
    """The source says something this reader does not understand; the sentence says where and what to do."""


@dataclass(frozen=True)
class Imported:
    """A name that another module defines."""

    module: str
    name: str


@dataclass(frozen=True)
class Entry:
    """A public name: what it is, where it is defined, what it promises."""

    name: str
    kind: str
    """class, function or data."""
    doc: str
    module: Module
    """That defines it."""
    line: int
    signature: Signature | None = None
    annotation: str = ""
    value: str = ""
    bases: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()


@dataclass(eq=False)
class Module:
    """One source file: its promise, what it exports, and every name in it."""

    name: str
    path: Path
    doc: str
    names: dict[str, Node | Imported] = field(default_factory=dict)
    docs: dict[str, str] = field(default_factory=dict)
    """Of constants: the literal below them."""
    exports: tuple[str, ...] | None = None


class Source:
    """The source tree: modules by dotted name, names followed to where they are defined."""

    def __init__(self, root: Path = REPO, public: Sequence[str] = PUBLIC) -> None:
        self.root = root
        self._public = public
        self._modules: dict[str, Module | None] = {}

    @cached_property
    def public_modules(self) -> tuple[Module, ...]:
        """In the order of their names; `absent_modules` has those that are not there.

        Raises `ApiError` for one that does not say what it exports.
        """
        found = [module for name in self._public if (module := self.module(name)) is not None]
        for module in found:
            if module.exports is None:
                raise ApiError(f"{module.name} is public: give it an __all__")
        return tuple(found)

    @property
    def absent_modules(self) -> list[str]:
        """Public modules that have no file."""
        return [name for name in self._public if self.module(name) is None]

    def module(self, name: str) -> Module | None:
        """The module of that name, `None` if it is not in this tree."""
        if name not in self._modules:
            base = self.root.joinpath(*name.split("."))
            paths = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
            self._modules[name] = _read_module(name, paths[0]) if paths else None
        return self._modules[name]

    def entry(self, module: Module, name: str) -> Entry:
        """What an exported name stands for."""
        home, node = self.resolve(module, name)
        if isinstance(node, ast.ClassDef):
            return Entry(
                name,
                "class",
                apinodes.class_doc(node),
                home,
                node.lineno,
                signature=self._class_signature(home, node),
                bases=tuple(ast.unparse(base) for base in node.bases),
                members=tuple(self._members(home, node)),
            )
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            signature = apinodes.signature_of(node)
            return Entry(name, "function", ast.get_docstring(node) or "", home, node.lineno, signature)
        annotation = apinodes.annotation_text(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        value = apinodes.short_value(node)
        if annotation.endswith("TypeAlias"):
            annotation, value = "", value.strip("\"'")
        doc = home.docs.get(target_name(node), "")
        return Entry(name, "data", doc, home, node.lineno, annotation=annotation, value=value)

    def resolve(self, module: Module, name: str) -> tuple[Module, Node]:
        """Follow imports to the definition."""
        start = f"{module.name}.{name}"
        for _ in range(20):
            found = module.names.get(name)
            if found is None:
                break
            if not isinstance(found, Imported):
                return module, found
            target = self.module(found.module)
            if target is None:
                break
            module, name = target, found.name
        raise ApiError(
            f"{start} is exported but not found: define it, or import it (late ones under TYPE_CHECKING)"
        )

    def _lineage(self, module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
        """The class, then its bases as far as they are in this tree."""
        yield module, node
        for base in node.bases:
            try:
                home, found = self.resolve(module, ast.unparse(base).partition("[")[0])
            except ApiError:
                continue
            if isinstance(found, ast.ClassDef):
                yield from self._lineage(home, found)

    def _class_signature(self, module: Module, node: ast.ClassDef) -> Signature | None:
        for home, cls in self._lineage(module, node):
            for item in cls.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return replace(apinodes.signature_of(item, bound=True), returns="")
            if apinodes.is_dataclass(cls):
                line = [ancestor for _, ancestor in self._lineage(home, cls)]
                return apinodes.fields_signature([c for c in reversed(line) if apinodes.is_dataclass(c)])
            if any(ast.unparse(base).endswith("NamedTuple") for base in cls.bases):
                return apinodes.fields_signature([cls])
        return None

    def _members(self, module: Module, node: ast.ClassDef) -> Iterator[Member]:
        ancestors = [cls for _, cls in self._lineage(module, node)][1:]
        for member in apinodes.members(node):
            # An override keeps the promise of what it overrides, unless it says more.
            yield member if member.doc else replace(member, doc=_inherited_doc(ancestors, member.name))


def target_name(node: Node) -> str:
    """The name that a definition or an assignment binds."""
    return apinodes.target_of(node) or getattr(node, "name", "")


def _inherited_doc(ancestors: Sequence[ast.ClassDef], name: str) -> str:
    docs = (m.doc for cls in ancestors for m in apinodes.members(cls) if m.name == name)
    return next(filter(None, docs), "")


def _read_module(name: str, path: Path) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    module = Module(name, path, ast.get_docstring(tree) or "")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    body = list(_statements(tree.body))
    for index, node in enumerate(body):
        if isinstance(node, ast.ImportFrom):
            source = _source_of(node, package)
            for alias in node.names:
                module.names[alias.asname or alias.name] = Imported(source, alias.name)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            module.names[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and (target := apinodes.target_of(node)):
            module.names.setdefault(target, node)
            module.docs.setdefault(target, apinodes.literal_after(body, index))
            if target == "__all__":
                module.exports = _exports(module, node)
    _show_constants(tree, module)
    return module


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The top level, with what stands under `if` and `try` there."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _statements([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse])


def _source_of(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def _exports(module: Module, node: ast.Assign | ast.AnnAssign) -> tuple[str, ...]:
    try:
        return tuple(ast.literal_eval(node.value)) if node.value else ()
    except ValueError:
        raise ApiError(f"{module.path}:{node.lineno}: write __all__ as a plain list of names") from None


def _show_constants(tree: ast.Module, module: Module) -> None:
    """Put the values of the module's own constants in place of their names where they are defaults."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.defaults = [_literal(default, module) for default in node.defaults]
            node.kw_defaults = [d and _literal(d, module) for d in node.kw_defaults]


def _literal(default: ast.expr, module: Module) -> ast.expr:
    bound = module.names.get(default.id) if isinstance(default, ast.Name) else None
    value = bound.value if isinstance(bound, (ast.Assign, ast.AnnAssign)) else None
    return value if isinstance(value, ast.Constant) else default


# What is not documented.

# fmt: off
_SMALL_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "in", "is", "it", "its", "of", "on", "or",
    "s", "that", "the", "this", "to", "was", "with",
})
# fmt: on


def says_something(name: str, doc: str) -> bool:
    """Whether a docstring is more than the words of the name it stands under."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return bool(_words(doc) - _words(parted) - _words(" ".join(_SMALL_WORDS)))


def _words(text: str) -> set[str]:
    # Without a plural's s: `names` is not explained by "The name."
    found = re.findall(r"[A-Za-z0-9]+", text.replace("_", " "))
    return {word.lower().removesuffix("s") for word in found}


def undocumented(source: Source) -> list[str]:
    """`path:line: name` of each public module, name and member whose docstring is missing or empty talk."""
    found: set[str] = set()
    for module in source.public_modules:
        if not module.doc:
            found.add(f"{module.path.relative_to(source.root)}:1: {module.name}")
        for name in module.exports or ():
            entry = source.entry(module, name)
            where = entry.module.path.relative_to(source.root)
            if not says_something(name, entry.doc):
                found.add(f"{where}:{entry.line}: {name}")
            found.update(
                f"{where}:{member.line}: {name}.{member.name}"
                for member in entry.members
                if not says_something(member.name, member.doc)
                and not (member.set_in_init and f"`{member.name}`" in entry.doc)
            )
    return sorted(found)
