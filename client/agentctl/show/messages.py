"""`-o json` and `-o jsonl`: the API's messages in proto3 JSON, with the field names of the protos.

Fields that have no presence are always there, so that a reader needs no defaults of its own.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

_PACKAGE: Final = "agentd.v1"


def to_dict(message: Message) -> dict[str, Any]:
    """A message as JSON's types."""
    always_print: dict[str, Any] = {_always_print(): True}
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, **always_print
    )
    return _ordered(found, message.DESCRIPTOR)


def _ordered(found: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """Fields in the order of the proto, which is the order of reading."""
    ordered: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.name not in found:
            continue
        value, kind = found[field.name], field.message_type
        if kind is not None and kind.file.package == _PACKAGE and not kind.GetOptions().map_entry:
            value = [_ordered(v, kind) for v in value] if isinstance(value, list) else _ordered(value, kind)
        ordered[field.name] = value
    return ordered


def write_json(message: Message) -> None:
    """One message, indented."""
    sys.stdout.write(json.dumps(to_dict(message), indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def write_json_list(name: str, messages: Iterable[Message], **beside: object) -> None:
    """Messages that no message of the API holds together, under a name; `beside` them other facts."""
    data = {name: [to_dict(message) for message in messages], **beside}
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def write_json_lines(messages: Iterable[Message]) -> None:
    """A message a line."""
    for message in messages:
        sys.stdout.write(json.dumps(to_dict(message), ensure_ascii=False) + "\n")
    sys.stdout.flush()


@cache
def _always_print() -> str:
    """The argument's name has changed between releases of protobuf."""
    new = "always_print_fields_with_no_presence"
    parameters = inspect.signature(json_format.MessageToDict).parameters
    return new if new in parameters else "including_default_value_fields"
