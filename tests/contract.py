"""The contract, walked: the tests that go through it meet a new element too."""

import importlib
import pkgutil
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor, MethodDescriptor, ServiceDescriptor

import animus.v1

PROTO = Path(__file__).parents[1] / "proto" / "animus" / "v1"


def files() -> list[FileDescriptor]:
    """Its files, by name: those of the package, which are those that were written."""
    names = sorted(module.name for module in pkgutil.iter_modules(animus.v1.__path__) if module.name.endswith("_pb2"))
    assert {path.stem for path in PROTO.glob("*.proto")} == {name.removesuffix("_pb2") for name in names}
    return [importlib.import_module(f"animus.v1.{name}").DESCRIPTOR for name in names]


FILES = files()
MESSAGES: dict[str, Descriptor] = {name: each for file in FILES for name, each in file.message_types_by_name.items()}
ENUMS: dict[str, EnumDescriptor] = {name: each for file in FILES for name, each in file.enum_types_by_name.items()}
SERVICES: list[ServiceDescriptor] = [each for file in FILES for each in file.services_by_name.values()]
RPCS: list[MethodDescriptor] = [each for service in SERVICES for each in service.methods]
METHODS: dict[str, MethodDescriptor] = {rpc.name: rpc for rpc in RPCS}
assert len(METHODS) == len(RPCS), "tests call a method by its name alone"
