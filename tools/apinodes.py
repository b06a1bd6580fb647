"""What single nodes of the syntax tree say: signatures, members of classes, docstrings of attributes."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"
Binding: TypeAlias = "ast.Assign | ast.AnnAssign"
Node: TypeAlias = "ast.ClassDef | Function | Binding"

SHORT = 60
"""Values longer than this many characters are not shown."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as it is written."""

    name: str
    annotation: str = ""
    default: str | None = None
    kw_only: bool = False

    def __str__(self) -> str:
        if not self.annotation:
            return self.name if self.default is None else f"{self.name}={self.default}"
        typed = f"{self.name}: {self.annotation}"
        return typed if self.default is None else f"{typed} = {self.default}"


@dataclass(frozen=True)
class Signature:
    """Parameters, with `*` and `/` among them, and what comes back."""

    parameters: tuple[str, ...]
    returns: str = ""

    def text(self, name: str, width: int) -> str:
        """On one line where it fits, else one parameter a line."""
        arrow = f" -> {self.returns}" if self.returns else ""
        line = f"{name}({', '.join(self.parameters)}){arrow}"
        if len(line) <= width or not self.parameters:
            return line
        return "\n".join([f"{name}(", *(f"    {parameter}," for parameter in self.parameters), f"){arrow}"])


@dataclass(frozen=True)
class Member:
    """A method, property, field or constant of a class."""

    name: str
    doc: str
    line: int
    signature: Signature | None = None
    """Of methods only."""
    annotation: str = ""
    value: str = ""
    set_in_init: bool = False
    """An attribute of instances, which the docstring of the class may explain as well."""
    marks: tuple[str, ...] = ()
    """What kind of method it is: abstract, class method, static method, property."""


# Signatures.


def signature_of(node: Function, *, bound: bool = False) -> Signature:
    """As written, without the first parameter where it is bound."""
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    shown = [
        _parameter(arg, default) for arg, default in zip(positional, [*missing, *args.defaults], strict=True)
    ]
    if args.posonlyargs:
        shown.insert(len(args.posonlyargs), "/")
    shown = shown[1:] if bound else shown
    if args.vararg:
        shown.append("*" + _parameter(args.vararg, None))
    elif args.kwonlyargs:
        shown.append("*")
    shown += [
        _parameter(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    if args.kwarg:
        shown.append("**" + _parameter(args.kwarg, None))
    return Signature(tuple(shown), annotation_text(node.returns))


def fields_signature(classes: Sequence[ast.ClassDef]) -> Signature:
    """Of the constructor that `dataclass` or NamedTuple makes; bases come first."""
    fields: dict[str, Parameter] = {}
    for node in classes:
        fields.update((parameter.name, parameter) for parameter in _fields(node))
    positional = [str(parameter) for parameter in fields.values() if not parameter.kw_only]
    keywords = [str(parameter) for parameter in fields.values() if parameter.kw_only]
    return Signature((*positional, *(["*"] if keywords else []), *keywords))


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether the decorator is there."""
    return any(re.match(r"(dataclasses\.)?dataclass\b", ast.unparse(d)) for d in node.decorator_list)


def annotation_text(node: ast.expr | None) -> str:
    """An annotation without the quotes that hide it from the interpreter."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ast.unparse(node)


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    shown = None if default is None else ast.unparse(default)
    return str(Parameter(arg.arg, annotation_text(arg.annotation), shown))


def _fields(node: ast.ClassDef) -> Iterator[Parameter]:
    kw_only = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation, options = annotation_text(item.annotation), _field_options(item.value)
        if annotation.endswith("KW_ONLY"):
            kw_only = True
        elif not annotation.startswith("ClassVar") and options.get("init") != "False":
            keyword = kw_only or options.get("kw_only") == "True"
            yield Parameter(item.target.id, annotation, _default(item.value, options), keyword)


def _is_field_call(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "dataclasses.field")


def _field_options(value: ast.expr | None) -> dict[str, str]:
    if not isinstance(value, ast.Call) or not _is_field_call(value):
        return {}
    return {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords if keyword.arg}


def _default(value: ast.expr | None, options: dict[str, str]) -> str | None:
    if factory := options.get("default_factory"):
        return {"dict": "{}", "list": "[]"}.get(factory, f"{factory}()")
    if _is_field_call(value):
        return options.get("default")
    return None if value is None else ast.unparse(value)


# Members.


def class_doc(node: ast.ClassDef) -> str:
    """Its own docstring, then what `__init__` says of the arguments."""
    inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    return "\n\n".join(filter(None, [ast.get_docstring(node), *map(ast.get_docstring, inits)]))


def members(node: ast.ClassDef) -> Iterator[Member]:
    """Public ones that this class itself defines, and abstract ones of any name."""
    found: dict[str, Member] = {}
    for index, item in enumerate(node.body):
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
            new = [*_set_in_init(item)] if item.name == "__init__" else [*_method(item)]
        elif isinstance(item, (ast.Assign, ast.AnnAssign)):
            new = [*_attribute(item, literal_after(node.body, index))]
        else:
            continue
        for member in new:
            found.setdefault(member.name, member)
    yield from found.values()


def target_of(node: ast.stmt) -> str:
    """The name that an assignment binds, `self.name` for an attribute; empty if it is not one name."""
    if isinstance(node, ast.AnnAssign):
        target: ast.expr = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    else:
        return ""
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
        return f"{target.value.id}.{target.attr}"
    return target.id if isinstance(target, ast.Name) else ""


def literal_after(body: Sequence[ast.stmt], index: int) -> str:
    """The docstring of an attribute: the literal that follows it."""
    after = body[index + 1] if index + 1 < len(body) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        return inspect.cleandoc(after.value.value) if isinstance(after.value.value, str) else ""
    return ""


def short_value(node: Node) -> str:
    """What an assignment binds, if that is short and no call of `field`."""
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    if value is None or _is_field_call(value):
        return ""
    text = ast.unparse(value)
    return text if len(text) <= SHORT else ""


def _method(node: Function) -> Iterator[Member]:
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    abstract = "abstractmethod" in decorators
    # An abstract method is for subclasses, whatever its name: who extends the class must know it.
    if (node.name.startswith("_") and not abstract) or decorators & {"setter", "deleter", "overload"}:
        return
    doc = ast.get_docstring(node) or ""
    marks: tuple[str, ...] = ("abstract",) if abstract else ()
    if decorators & {"property", "cached_property"}:
        returns = annotation_text(node.returns)
        yield Member(node.name, doc, node.lineno, annotation=returns, marks=(*marks, "property"))
        return
    static = "staticmethod" in decorators
    marks += ("static method",) if static else ()
    marks += ("class method",) if "classmethod" in decorators else ()
    yield Member(node.name, doc, node.lineno, signature_of(node, bound=not static), marks=marks)


def _attribute(node: Binding, doc: str) -> Iterator[Member]:
    name = target_of(node)
    if not name or name.startswith("_") or "." in name:
        return
    if isinstance(node, ast.AnnAssign):
        # The signature shows the defaults of fields.
        yield Member(name, doc, node.lineno, annotation=annotation_text(node.annotation))
    else:
        yield Member(name, doc, node.lineno, value=short_value(node))


def _set_in_init(init: Function) -> Iterator[Member]:
    """Attributes of instances; one set from a parameter has its type."""
    types = {arg.arg: annotation_text(arg.annotation) for arg in [*init.args.args, *init.args.kwonlyargs]}
    for index, node in enumerate(init.body):
        owner, _, name = target_of(node).rpartition(".")
        if owner != "self" or name.startswith("_"):
            continue
        assert isinstance(node, (ast.Assign, ast.AnnAssign))
        value = "" if node.value is None else ast.unparse(node.value)
        typed = annotation_text(node.annotation) if isinstance(node, ast.AnnAssign) else types.get(value, "")
        doc = literal_after(init.body, index)
        yield Member(name, doc, node.lineno, annotation=typed, set_in_init=True)
