"""The two ways in which a command ends without having done its work."""


class InputError(ValueError):
    """Bad usage or bad input: one sentence that names the value, the place and what is allowed.

    The command line prints it and exits with status 2.
    """


class CheckFailed(Exception):  # noqa: N818 - a verdict about the bundle, not an error of the tool
    """The work was done and says no (a figure is out of tolerance): exit status 1."""
