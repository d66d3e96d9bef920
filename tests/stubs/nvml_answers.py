"""Records what NVML answers to the probe on a real card, and gives the same answers again without one.

A recording is one JSON object:

    about     what it is and where it is from; {"simulated": true, ...} where nobody recorded it
    absent    [function]: what the library does not have
    words     {code: what nvmlErrorString says of it}
    system    {question: [answer, ...]} of the functions that take no device
    devices   the same for each device, in the order in which NVML handed them out

A question is the function's name and its arguments that go in by value, without the device: "nvmlDeviceGetTotalEccErrors 1 0". Its
answers are in the order in which they were given; the last one is repeated. An answer is [code, output, ...]: a number, a text, an
object for a structure, a list for an array, {"device": n} for the handle of a device. After a failure there are no outputs, unless
the code is 7 (insufficient size). `main` of tests/gpu/capture.py writes one; `Replay` is the library that a recording stands for.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

SUCCESS, INSUFFICIENT_SIZE, FUNCTION_NOT_FOUND = 0, 7, 13
_WORDS = "nvmlErrorString"
_UUID = re.compile(r"\b(GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


class _Function:
    """A function of a library, as ctypes shows it: callable, with a type of result that can be set."""

    restype: Any = None

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class Recorder:
    """Stands before a real library and writes down what it answers."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles: list[int | None] = []
        self.recording: dict[str, Any] = {"about": {}, "absent": [], "words": {}, "system": {}, "devices": []}

    def __getattr__(self, name: str) -> _Function:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            self.recording["absent"].append(name)
            raise
        if name == _WORDS:
            return _Function(lambda code: self._words(function, code))
        return _Function(lambda *arguments: self._ask(name, function, arguments))

    def _words(self, function: Any, code: int) -> bytes:
        function.restype = ctypes.c_char_p
        words = function(code) or b""
        self.recording["words"][str(code)] = words.decode()
        return words

    def _ask(self, name: str, function: Any, arguments: tuple[Any, ...]) -> int:
        code = function(*arguments)
        device, question, outputs = _parts(name, arguments)
        told = [self._said(output) for output in outputs] if code in (SUCCESS, INSUFFICIENT_SIZE) else []
        answers = self.recording["system"]
        if device is not None:
            answers = self.recording["devices"][self._handles.index(device)]
        answers.setdefault(question, []).append([code, *told])
        return code

    def _said(self, output: Any) -> Any:
        if not isinstance(output, ctypes.c_void_p):
            return _value(output)
        if output.value not in self._handles:
            self._handles.append(output.value)
            self.recording["devices"].append({})
        return {"device": self._handles.index(output.value)}


class Replay:
    """A library that answers what a recording says; a question that nobody recorded is an error of the test."""

    def __init__(self, recording: dict[str, Any]) -> None:
        self._recording = recording
        self._asked: dict[tuple[Any, str], int] = {}

    def __getattr__(self, name: str) -> _Function:
        if name in self._recording["absent"]:
            raise AttributeError(name)
        if name == _WORDS:
            return _Function(lambda code: self._recording["words"].get(str(code), "Unknown Error").encode())
        return _Function(lambda *arguments: self._answer(name, arguments))

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        device, question, outputs = _parts(name, arguments)
        known = self._recording["system"] if device is None else self._recording["devices"][device - 1]
        assert question in known, f"nobody recorded {question!r}: run tests/gpu/capture.py again"
        times = self._asked.get((device, question), 0)
        self._asked[(device, question)] = times + 1
        code, *told = known[question][min(times, len(known[question]) - 1)]
        for output, value in zip(outputs, told):
            if isinstance(output, ctypes.c_void_p):
                output.value = value["device"] + 1  # a handle is never null
            else:
                _put(output, value)
        return code


def nameless(value: Any) -> Any:
    """Return a recording whose UUIDs name no real card: which is which can still be told."""
    numbers: dict[str, str] = {}

    def hide(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], f"{found[1]}-00000000-0000-0000-0000-{len(numbers) + 1:012d}")

    def walk(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: walk(part) for key, part in item.items()}
        if isinstance(item, list):
            return [walk(part) for part in item]
        return _UUID.sub(hide, item) if isinstance(item, str) else item

    return walk(value)


def _parts(name: str, arguments: tuple[Any, ...]) -> tuple[Any, str, list[Any]]:
    """Return (device or None, question, outputs) of a call."""
    device, question, outputs = None, name, []
    for argument in arguments:
        if isinstance(argument, ctypes.c_void_p):
            device = argument.value
        elif isinstance(argument, ctypes._SimpleCData):
            question += f" {argument.value}"
        elif isinstance(argument, ctypes.Array):
            outputs.append(argument)
        elif argument is not None:
            outputs.append(argument._obj)  # what byref() refers to
    return device, question, outputs


def _value(source: Any) -> Any:
    """Return what a piece of memory holds as JSON can say it."""
    if isinstance(source, ctypes.Structure):
        return {name: _value(getattr(source, name)) for name, *_type in source._fields_}
    if isinstance(source, ctypes.Array):
        return _value(source.value) if source._type_ is ctypes.c_char else [_value(item) for item in source]
    if isinstance(source, ctypes._SimpleCData):
        return source.value
    return source.decode("utf-8", "replace") if isinstance(source, bytes) else source


def _put(target: Any, value: Any) -> None:
    """Write a value back to where `_value` has it from."""
    if isinstance(target, ctypes.Structure):
        for name, *_type in target._fields_:
            part = getattr(target, name)
            if isinstance(part, (ctypes.Structure, ctypes.Array)):
                _put(part, value[name])
            else:
                setattr(target, name, value[name].encode() if isinstance(part, bytes) else value[name])
    elif isinstance(target, ctypes.Array) and target._type_ is not ctypes.c_char:
        for index, item in enumerate(value):
            if isinstance(item, dict):
                _put(target[index], item)
            else:
                target[index] = item
    else:
        target.value = value.encode() if isinstance(value, str) else value
