"""Every field of Envoy's API that a resource could have, tried one at a time.

In: on standard input a JSON list of resources, each the JSON form of an Any. Out: a line for each resource as it is, and one for
each field of each message in it with a value that differs from what stands there:

    {"resource": INDEX, "message": NAME or null, "field": NAME, "without": BASE64 or null,
     "cleared": BOOL, "type": URL, "value": BASE64}

A field of which only one of several may be set takes the place of another: "without" is the resource with none of them. A field
that is there and holds a message is taken away once, "cleared", and then the fields in it are tried.

usage: fields.py < RESOURCES
"""

import base64
import importlib
import json
import pkgutil
import sys

from google.protobuf import any_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor

import envoy

WRAPPERS = ("BoolValue", "UInt32Value", "UInt64Value", "DoubleValue", "FloatValue", "Int64Value", "StringValue")


def learn(package):
    """Imports what describes messages, so that an Any can be taken apart."""
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("_pb2") and ".v3." in module.name:
            importlib.import_module(module.name)


def value(field):
    """A value that is not the default one."""
    kinds = {
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_STRING: b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x",
        FieldDescriptor.CPPTYPE_DOUBLE: 7.0,
        FieldDescriptor.CPPTYPE_FLOAT: 7.0,
    }
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return next((v.number for v in field.enum_type.values if v.number != 0), 0)
    return kinds.get(field.cpp_type, 7)


def other(field, there):
    """A value of the same kind as one that is there."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not there
    if field.name == "address_prefix":
        return "192.0.2.0"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return there + (b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x")
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        numbers = [v.number for v in field.enum_type.values]
        return numbers[(numbers.index(there) + 1) % len(numbers)]
    return there + 1


def is_map(field):
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def fill(message, depth):
    """Sets all that a message can hold, down to a depth."""
    for field in message.DESCRIPTOR.fields:
        if is_map(field) or field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        if field.message_type is None:
            put(message, field, value(field))
        elif depth > 0 or field.message_type.full_name.startswith("google.protobuf"):
            target = getattr(message, field.name)
            inner = target.add() if field.is_repeated else target
            inner.SetInParent() if not field.is_repeated else None
            fill(inner, depth - 1)


def put(message, field, new):
    if field.is_repeated:
        getattr(message, field.name).append(new)
    else:
        setattr(message, field.name, new)


def try_all(message, emit):
    """Calls `emit(message name, field name, without)` with each field of `message` changed, and takes the change back."""
    for field in message.DESCRIPTOR.fields:
        name = message.DESCRIPTOR.full_name
        there = {f.name for f, _ in message.ListFields()}
        before = type(message)()
        before.CopyFrom(message)

        def tried():
            one_of = field.containing_oneof and before.WhichOneof(field.containing_oneof.name)
            if one_of and one_of != field.name:
                changed = type(message)()
                changed.CopyFrom(message)
                message.CopyFrom(before)
                message.ClearField(one_of)
                without = emit(name, field.name, None, quiet=True)
                message.CopyFrom(changed)
                emit(name, field.name, without)
            else:
                emit(name, field.name, None)
            message.CopyFrom(before)

        if field.name not in there:
            if is_map(field):
                entry = field.message_type.fields_by_name["value"]
                if entry.message_type is None:
                    getattr(message, field.name)["x"] = value(entry)
                else:
                    getattr(message, field.name)["x"].SetInParent()
                tried()
            elif field.message_type is None:
                put(message, field, value(field))
                tried()
            else:
                for depth in (None, 0, 1):
                    target = getattr(message, field.name)
                    inner = target.add() if field.is_repeated else target
                    if not field.is_repeated:
                        inner.SetInParent()
                    if depth is not None:
                        fill(inner, depth)
                    tried()
            continue
        held = getattr(message, field.name)
        whole = field.message_type is None or field.message_type.full_name == "google.protobuf.Duration"
        if not whole and field.message_type.name not in WRAPPERS:
            message.ClearField(field.name)
            emit(name, field.name, None, cleared=True)
            message.CopyFrom(before)
            held = getattr(message, field.name)
        if is_map(field):
            for key in sorted(held):
                if hasattr(held[key], "DESCRIPTOR"):
                    descend(held[key], emit)
        elif field.message_type is not None:
            if not field.is_repeated and field.message_type.name in WRAPPERS:
                held.value = other(held.DESCRIPTOR.fields_by_name["value"], held.value)
                tried()
            elif field.message_type.full_name == "google.protobuf.Duration":
                held.seconds += 1
                tried()
            else:
                for inner in held if field.is_repeated else [held]:
                    descend(inner, emit)
        elif field.is_repeated:
            held[0] = other(field, held[0])
            tried()
        else:
            setattr(message, field.name, other(field, held))
            tried()


def descend(message, emit):
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        inside = message_factory.GetMessageClass(
            descriptor_pool.Default().FindMessageTypeByName(message.type_url.rsplit("/", 1)[-1])
        )()
        message.Unpack(inside)
        before = any_pb2.Any()
        before.CopyFrom(message)

        def repacked(*arguments, **options):
            message.value = inside.SerializeToString(deterministic=True)
            result = emit(*arguments, **options)
            message.CopyFrom(before)
            return result

        try_all(inside, repacked)
    elif not message.DESCRIPTOR.full_name.startswith("google.protobuf"):
        try_all(message, emit)


def main():
    learn(envoy)
    for index, resource in enumerate(json.load(sys.stdin)):
        whole = any_pb2.Any()
        json_format.ParseDict(resource, whole)

        def emit(message, field, without, quiet=False, cleared=False):
            value = base64.b64encode(whole.value).decode()
            if quiet:
                return value
            line = {"resource": index, "message": message, "field": field, "without": without, "cleared": cleared}
            print(json.dumps({**line, "type": whole.type_url, "value": value}))

        emit(None, "", None)
        descend(whole, emit)


main()
