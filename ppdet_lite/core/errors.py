"""The two ways in which a run ends with one line instead of a traceback."""


class UserError(Exception):
    """A mistake in a config, a file or a command, told in one line that says what and how to mend it.

    The command-line tools print it without a traceback and exit with code 2.
    """


class RunFailed(Exception):
    """A run that cannot go on though nothing was asked wrongly: a loss that is not finite, a failed comparison.

    The command-line tools print it without a traceback and exit with code 1.
    """
