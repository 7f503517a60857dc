"""The errors of `python -m pipelines`, each one line and an exit code as those of `gda`."""


class PipelinesError(Exception):
    """Base; the message names what was given and what is accepted."""

    exit_code = 1


class UsageError(PipelinesError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class MissingError(PipelinesError):
    """The environment lacks something: an address, a token, a permission."""

    exit_code = 5


class TryAgainError(PipelinesError):
    """The server is away."""

    exit_code = 75
