"""All errors for users, as one tree; the command line prints one line for each and exits with its code.

    GdaError
    |- UsageError        2  a wrong command line
    |  `- ConfigError    2  a wrong field in params.yaml or --set
    |- DataError         3  images, labels, snapshots or weights that cannot be used
    |  `- NotFiniteError 3  a network that generated NaN or infinity
    |- RefusedError      4  a gate refused and --strict was given
    |- MissingError      5  something the environment lacks: weights, disk, network, device
    `- TryAgainError    75  interrupted, lost a race, or a store is unreachable
Exit code 1 means a defect in gda itself.
"""

from collections.abc import Sequence


class GdaError(Exception):
    """Base of every error meant for a user: one clear line that names the field or file, the value and what is accepted."""

    exit_code = 1


class UsageError(GdaError):
    """The command line requests something that cannot be done."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration field is unknown, of the wrong type or out of range."""


class DataError(GdaError):
    """Images, labels, snapshots or weights that cannot be used."""

    exit_code = 3


class NotFiniteError(DataError):
    """Rows of a batch whose generated images hold NaN or infinity: `rows` of `count`."""

    def __init__(self, rows: Sequence[int], count: int) -> None:
        super().__init__(f"{len(rows)} of {count} generated images hold NaN or infinity")
        self.rows = tuple(rows)


class RefusedError(GdaError):
    """A gate refused, and `--strict` turns a refusal into an error."""

    exit_code = 4


class MissingError(GdaError):
    """The environment lacks something: weights, disk space, the network, a device."""

    exit_code = 5


class TryAgainError(GdaError):
    """Nothing is wrong with the request: it was interrupted, lost a race, or a store is unreachable."""

    exit_code = 75
