"""The user's own callables, named on the command line: ``package.module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType

from bncheck.core.errors import BadSpec, Interrupted, UserCodeFailed

_FRAMES_SHOWN = 3

FAILURES = (Exception, SystemExit)
"""What user code fails with. Its own ``sys.exit()`` must not end an audit, and least of all with 0."""


def load_callable(spec: str) -> Callable[..., object]:
    """Import the module a SPEC names and take the callable from it.

    Modules are looked for from the working directory, as ``python -m`` does; a file's own folder is put on the path
    too, so that it can import its neighbours.

    Raises:
        BadSpec: it is malformed, or there is no such file, module or name.
        UserCodeFailed: importing it raised.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise BadSpec(f"{spec!r} is no package.module:callable and no path/to/file.py:callable")
    module = _from_file(where, spec) if where.endswith(".py") else _from_name(where, spec)
    found = getattr(module, name, None)
    if found is None:
        near = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_")[:8])
        raise BadSpec(f"{spec}: {where} has no {name!r}; it has {near or 'nothing callable'}")
    if not callable(found):
        raise BadSpec(f"{spec}: {name} is a {type(found).__name__}; name a function that returns it")
    made: Callable[..., object] = found
    return made


def call(what: str, function: Callable[..., object], *args: object, **keywords: object) -> object:
    """Call the user's function; what it raises is told as theirs.

    Raises:
        UserCodeFailed: it raised.
    """
    try:
        return function(*args, **keywords)
    except Interrupted:
        raise
    except FAILURES as error:
        raise failure(what, error) from error


def failure(what: str, error: BaseException) -> UserCodeFailed:
    """What to tell of an exception in the user's code: one line, and their own frames of the traceback."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    lines = traceback.format_list(own[-_FRAMES_SHOWN:]) + traceback.format_exception_only(error)
    first = str(error).strip().partition("\n")[0]
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return UserCodeFailed(f"{what} failed with {said}", detail="".join(lines).rstrip())


_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _is_ours(path: str) -> bool:
    return os.path.abspath(path).startswith(_HERE + os.sep) or path.startswith("<frozen importlib")


def _from_file(path: str, spec: str) -> ModuleType:
    if not os.path.isfile(path):
        raise BadSpec(f"{spec}: there is no file {path}")
    folder, file = os.path.split(os.path.abspath(path))
    name = file.removesuffix(".py")
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == os.path.join(folder, file):
        return known
    described = importlib.util.spec_from_file_location(name, os.path.join(folder, file))
    if described is None or described.loader is None:
        raise BadSpec(f"{spec}: {path} cannot be imported")
    module = importlib.util.module_from_spec(described)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Registered before it runs: dataclasses and pickles look their module up by name.
    sys.modules[name] = module
    try:
        described.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, FAILURES) and not isinstance(error, Interrupted):
            raise failure(f"importing {path}", error) from error
        raise
    return module


def _from_name(name: str, spec: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadSpec(f"{spec}: there is no module {name}, seen from {os.getcwd()}") from None
        raise failure(f"importing {name}", error) from error
    except Interrupted:
        raise
    except FAILURES as error:
        raise failure(f"importing {name}", error) from error
