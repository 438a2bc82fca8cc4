"""The errors of the package: one base class, names that end in Error, and an exit status for the command line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import tornado_rbkit
from tornado_rbkit import RbkitError
from tornado_rbkit.profiler import AlreadyRunningError, ArgumentError, BindError, RuntimeFolderError

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(tornado_rbkit.__path__, "tornado_rbkit.")
    if module.name.rpartition(".")[2] not in ("__main__", "sitecustomize")  # these run when they are imported
]
ERRORS = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__.startswith("tornado_rbkit")
    },
    key=lambda error: error.__qualname__,
)

NAMES_IN_USE = {"ConnectionLost", "CellFailed"}
"""A public name, and a name that users see in tracebacks."""


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_named_so_and_described(error: type[BaseException]) -> None:
    assert error.__name__.endswith("Error") or error.__name__ in NAMES_IN_USE
    assert error.__doc__


@pytest.mark.parametrize("error", [error for error in ERRORS if issubclass(error, RbkitError)], ids=str)
def test_wrong_arguments_end_a_command_with_2_and_failures_with_1(error: type[RbkitError]) -> None:
    of_arguments = {"ArgumentError", "BindError", "EndpointError", "RecordingError", "RuntimeFolderError"}
    of_arguments |= {"CredentialsError", "FleetExtraMissingError", "HubError"}
    assert error.exit_status == (2 if error.__name__ in of_arguments else 1)


def test_the_profiler_s_own_errors_have_the_same_base() -> None:
    for error in (AlreadyRunningError, ArgumentError, BindError, RuntimeFolderError):
        assert issubclass(error, RbkitError)
