"""One small hierarchy: every error names the thing, and its hint names the mend."""

from typing import Self


class RnnEdgeError(Exception):
    """A mistake that a user can mend.

    The command line prints ``error: message`` and ``hint: hint`` and exits with ``exit_code``.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Both arguments, so that it survives the way from another process."""
        return type(self), (self.message, self.hint)


class InvalidValueError(RnnEdgeError, ValueError):
    """A parameter is out of its range."""

    exit_code = 2


class BundleError(RnnEdgeError):
    """A bundle is missing, damaged, or not what its manifest says."""


class StateError(RnnEdgeError):
    """A saved state cannot be used with this model."""


class UnknownTokenError(RnnEdgeError):
    """A text holds characters or words that the model has never seen."""


class DataError(RnnEdgeError):
    """A corpus or another input file cannot be used."""


class RunError(RnnEdgeError):
    """A training run cannot be started, resumed or exported."""


class ParityError(RnnEdgeError):
    """An exported graph does not compute what its source computes."""


class MissingDependencyError(RnnEdgeError, ImportError):
    """An optional package is needed and not installed."""


class DeployError(RnnEdgeError):
    """A device cannot be reached, or does not take what is deployed to it."""


class DeviceError(RnnEdgeError):
    """The device that was asked for cannot be used."""
