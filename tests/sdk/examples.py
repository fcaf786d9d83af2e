"""What an API could answer: for every operation of openai-python a body that fits the type the SDK reads it as.

The operations are read out of the SDK's source (`self._post("/x", ..., cast_to=T)`), the bodies are made from the types.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import openai.resources
import orjson
import pydantic
from openai.types.audio import Transcription

_VERBS = {"_get": "GET", "_post": "POST", "_put": "PUT", "_patch": "PATCH", "_delete": "DELETE", "_get_api_list": "GET"}
_DEEP = 12  # models within models: what is optional below is left out
_SCALARS: dict[Any, Any] = {
    str: "string", int: 1, float: 1.5, bool: True, object: {}, Any: {}, datetime: "2026-01-01T00:00:00Z", date: "2026-01-01",
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One request that the SDK can make."""

    method: str
    path: re.Pattern[str]
    answer: bytes  #: JSON, or bytes of a file
    kind: str  #: its content type


class Api:
    """All operations, looked up by what arrives."""

    def __init__(self) -> None:
        found = [_operation(call, module) for module in _modules() for call in _calls(module)]
        self._operations = sorted(filter(None, found), key=lambda each: each.path.pattern.count("[^/]+"))
        assert len(self._operations) > 300

    def answer(self, method: str, path: str) -> Operation | None:
        """The first operation that fits; those without parameters come first."""
        return next((each for each in self._operations if each.method == method and each.path.fullmatch(path)), None)


def example(kind: Any, depth: int = 0) -> Any:
    """A small value of this type, as JSON has it."""
    kind = getattr(kind, "__value__", kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated or origin is typing.Required or origin is typing.NotRequired:
        return example(args[0], depth)
    if kind is None or kind is type(None):
        return None
    if isinstance(kind, TypeVar):
        return {}
    if origin is Literal:
        return args[0]
    if origin in (Union, types.UnionType):
        plain = [arg for arg in args if arg is not type(None)]
        return None if depth > _DEEP and len(plain) < len(args) else example(plain[0], depth)
    if origin is list or kind is list:
        return [example(args[0], depth + 1)] if args and depth <= _DEEP else []
    if origin is dict or kind is dict:
        return {"key": example(args[1], depth + 1)} if args and depth <= _DEEP else {}
    for scalar, value in _SCALARS.items():
        if kind is scalar:
            return value
    model = origin or kind
    if inspect.isclass(model) and issubclass(model, pydantic.BaseModel):
        concrete = kind if inspect.isclass(kind) else model
        needed = {name: field for name, field in concrete.model_fields.items() if field.is_required()}
        return {field.alias or name: example(field.annotation, depth + 1) for name, field in needed.items()}
    if inspect.isclass(kind) and issubclass(kind, (int, float)):
        return kind.__mro__[-2](1)
    return "string"


def page(kind: Any) -> Any:
    """A list with one thing in it, after which there is no more."""
    model = example(kind)
    return {"object": "list", "data": [model], "has_more": False, "first_id": "string", "last_id": "string", "next": None}


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(openai.resources.__path__, "openai.resources."):
        yield importlib.import_module(found.name)


def _calls(module: ModuleType) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in _VERBS and isinstance(called.value, ast.Name):
            assert isinstance(node, ast.Call)
            yield node


def _operation(call: ast.Call, module: ModuleType) -> Operation | None:
    named = {word.arg: word.value for word in call.keywords}
    where = call.args[0] if call.args else named.get("path")
    if isinstance(where, ast.Call):
        where = where.args[0]
    if not (isinstance(where, ast.Constant) and isinstance(where.value, str)):
        return None
    assert isinstance(call.func, ast.Attribute)
    method = _VERBS[call.func.attr]
    if isinstance(named.get("method"), ast.Constant):
        method = str(named["method"].value).upper()  # type: ignore[attr-defined]
    listed = call.func.attr == "_get_api_list"
    kind = _evaluate(named["model" if listed else "cast_to"], module)
    path = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(where.value)))
    if "BinaryResponse" in getattr(kind, "__name__", ""):
        return Operation(method, path, bytes(range(256)), "application/octet-stream")
    if kind is str:
        return Operation(method, path, b"string", "text/plain")
    return Operation(method, path, orjson.dumps(page(kind) if listed else example(kind)), "application/json")


def _evaluate(node: ast.expr, module: ModuleType) -> Any:
    try:
        return eval(ast.unparse(node), vars(module))
    except NameError:  # of a transcription: it depends on the request
        return Transcription
