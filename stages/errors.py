"""What a user can put right: reported in a few lines, never as a traceback."""


class UserError(Exception):
    """A mistake in the user's data, parameters or surroundings.

    The message names the file, the row or key, what was found, what is allowed and the fix. Every command prints it on
    stderr and exits with 1.
    """
