"""The three ways in which a command may end other than well, each with its exit code."""


class InputError(ValueError):
    """Something the user gave cannot be used: a config, a path, data, a checkpoint. Exit code 2.

    The message names what was given, why it cannot be used and what to do about it.
    """


class CheckpointError(InputError):
    """A checkpoint or weight file is unreadable, unsafe, or belongs to something else."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite; names the step and the terms. Exit code 1."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, SIGINT) and has saved its state. Exit code 143 or 130."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code
