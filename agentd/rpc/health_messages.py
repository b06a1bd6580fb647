"""grpc.health.v1 as it is published today, whatever version of its Python package is installed.

The packaged messages lack `List` before grpcio-health-checking 1.85, and a second file of that name
cannot enter the default pool. So these live in a pool of their own.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE: Final = "grpc.health.v1.Health"
_PACKAGE: Final = "grpc.health.v1"
_Field = descriptor_pb2.FieldDescriptorProto


def _field(
    name: str, kind: Any, *, label: Any = _Field.LABEL_OPTIONAL, type_name: str = "", number: int = 1
) -> Any:
    full_name = f".{_PACKAGE}.{type_name}" if type_name else None
    return _Field(name=name, number=number, type=kind, label=label, type_name=full_name)


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package=_PACKAGE, syntax="proto3"
    )
    file.message_type.add(name="HealthCheckRequest").field.append(_field("service", _Field.TYPE_STRING))
    response = file.message_type.add(name="HealthCheckResponse")
    statuses = response.enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        statuses.value.add(name=name, number=number)
    response.field.append(_field("status", _Field.TYPE_ENUM, type_name="HealthCheckResponse.ServingStatus"))
    file.message_type.add(name="HealthListRequest")
    _add_list_response(file)
    service = file.service.add(name="Health")
    for method, message, streams in (
        ("Check", "Check", False),
        ("List", "List", False),
        ("Watch", "Check", True),
    ):
        service.method.add(
            name=method,
            input_type=f".{_PACKAGE}.Health{message}Request",
            output_type=f".{_PACKAGE}.Health{message}Response",
            server_streaming=streams,
        )
    return file


def _add_list_response(file: descriptor_pb2.FileDescriptorProto) -> None:
    response = file.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.append(_field("key", _Field.TYPE_STRING))
    entry.field.append(_field("value", _Field.TYPE_MESSAGE, type_name="HealthCheckResponse", number=2))
    response.field.append(
        _field(
            "statuses",
            _Field.TYPE_MESSAGE,
            label=_Field.LABEL_REPEATED,
            type_name="HealthListResponse.StatusesEntry",
        )
    )


def _message(name: str) -> Any:
    descriptor = _POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    make: Any = getattr(message_factory, "GetMessageClass", None)
    if make is None:  # protobuf before 4.22
        make = message_factory.MessageFactory(_POOL).GetPrototype  # type: ignore[attr-defined, unused-ignore]
    return make(descriptor)


FILE: Final = _file()
_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.Add(FILE)

CheckRequest: Final = _message("HealthCheckRequest")
CheckResponse: Final = _message("HealthCheckResponse")
ListRequest: Final = _message("HealthListRequest")
ListResponse: Final = _message("HealthListResponse")
