"""How a command ends before its work is done: told in a few lines, never as a traceback."""


class UserError(Exception):
    """A mistake in the user's data, parameters or surroundings.

    The message names the file, the row or key, what was found, what is allowed and the fix. Every command prints it on
    stderr and exits with 1.
    """


class Stopped(SystemExit):
    """Someone asked the process to end. Every command prints the message on stderr and exits with the code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message
