"""Many commands in one round trip: recorded first, then sent together."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from everwrite.client import commands
from everwrite.client.commands import Command

__all__ = ["Later", "Recorder", "checked"]

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V", bound="_KeyRecorder")


class Later(Generic[T]):
    """The result of a command in a pipeline, once that has run."""

    __slots__ = ("_done", "_result")

    def __init__(self) -> None:
        self._done = False
        self._result: Any = None

    @property
    def value(self) -> T:
        """The command's result; raises its error, or RuntimeError before the pipeline has run."""
        if not self._done:
            raise RuntimeError("the pipeline hasn't run: call run() first")
        if isinstance(self._result, Exception):
            raise self._result
        result: T = self._result
        return result

    def settle(self, result: T | Exception) -> None:
        """Set the result, or the exception to raise."""
        self._done, self._result = True, result


def _recorded(build: Callable[P, Command[T]]) -> Callable[Concatenate[Recorder, P], Later[T]]:
    @wraps(build)
    def method(self: Recorder, /, *args: P.args, **options: P.kwargs) -> Later[T]:
        return self.record(build(*args, **options))

    return method


def _of_key(build: Callable[Concatenate[bytes, P], Command[T]]) -> Callable[Concatenate[_KeyRecorder, P], Later[T]]:
    @wraps(build)
    def method(self: _KeyRecorder, /, *args: P.args, **options: P.kwargs) -> Later[T]:
        return self.pipeline.record(build(self.key, *args, **options))

    return method


class Recorder:
    """What both clients' pipelines record with. Each method returns a `Later`."""

    def __init__(self) -> None:
        self.commands: list[Command[Any]] = []
        self.results: list[Later[Any]] = []

    def __len__(self) -> int:
        return len(self.commands)

    def record(self, command: Command[T]) -> Later[T]:
        """Add a command."""
        if command.options:
            raise TypeError("timeout and consistency are the whole pipeline's: give them to run()")
        later: Later[T] = Later()
        self.commands.append(command)
        self.results.append(later)
        return later

    def take(self) -> tuple[list[Command[Any]], list[Later[Any]]]:
        """What is recorded; the pipeline is empty then."""
        taken = self.commands, self.results
        self.commands, self.results = [], []
        return taken

    execute = _recorded(commands.execute)
    get = _recorded(commands.get)
    put = _recorded(commands.put)
    delete = _recorded(commands.delete)
    pop = _recorded(commands.pop)
    exists = _recorded(commands.exists)
    get_many = _recorded(commands.get_many)
    put_many = _recorded(commands.put_many)
    delete_many = _recorded(commands.delete_many)
    expire = _recorded(commands.expire)
    persist = _recorded(commands.persist)
    ttl = _recorded(commands.ttl)
    why = _recorded(commands.why)

    def counter(self, key: bytes) -> CounterRecorder:
        """The counter at `key`."""
        return CounterRecorder(self, key)

    def set(self, key: bytes) -> SetRecorder:
        """The set at `key`."""
        return SetRecorder(self, key)

    def map(self, key: bytes) -> MapRecorder:
        """The map at `key`."""
        return MapRecorder(self, key)


class _KeyRecorder:
    def __init__(self, pipeline: Recorder, key: bytes) -> None:
        self.pipeline = pipeline
        self.key = key


class CounterRecorder(_KeyRecorder):
    """A counter in a pipeline."""

    increment = _of_key(commands.counter_increment)
    decrement = _of_key(commands.counter_decrement)
    value = _of_key(commands.counter_value)
    reset = _of_key(commands.clear)


class SetRecorder(_KeyRecorder):
    """A set in a pipeline."""

    add = _of_key(commands.set_add)
    discard = _of_key(commands.set_discard)
    contains = _of_key(commands.set_contains)
    members = _of_key(commands.set_members)
    size = _of_key(commands.set_size)
    clear = _of_key(commands.clear)


class MapRecorder(_KeyRecorder):
    """A map in a pipeline."""

    get = _of_key(commands.map_get)
    get_many = _of_key(commands.map_get_many)
    put = _of_key(commands.map_put)
    set = _of_key(commands.map_set)
    discard = _of_key(commands.map_discard)
    increment = _of_key(commands.map_increment)
    contains = _of_key(commands.map_contains)
    items = _of_key(commands.map_items)
    size = _of_key(commands.map_size)
    clear = _of_key(commands.clear)


def checked(results: list[Any]) -> list[Any]:
    """The results, or the first error among them."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
