"""The ways in which a run ends with one line instead of a traceback."""


class UserError(Exception):
    """A mistake in a config, a file or a command, told in one line that says what and how to mend it.

    The command-line tools print it without a traceback and exit with code 2.

    key: the argument of a component that is to be changed; whoever builds it from a config adds where that was set.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class Misfit(ValueError):
    """Arguments of a component that do not go together, each right by itself.

    key: dotted, below the component, names the one to change; `build_model` tells where a config says it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


class Stopped(BaseException):
    """A run that was asked to stop, and has: what it did is saved. The command-line tools exit with its code.

    No Exception, as KeyboardInterrupt is none: a library that passes over whatever its reading raises lets it through.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunFailed(Exception):
    """A run that cannot go on though nothing was asked wrongly: a loss that is not finite, a failed comparison.

    The command-line tools print it without a traceback and exit with code 1.
    """


class NotFinite(RunFailed):
    """A step whose loss or gradient is not finite, before any weight was updated."""


class TornStep(RunFailed):
    """A step that broke off while weights were being updated: they are neither those before nor those after it."""
