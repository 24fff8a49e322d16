"""Exceptions that end a run with a one-line message instead of a traceback."""


class UserError(Exception):
    """A mistake in a config, a file or a command. The message is one line: the place, what is wrong and the remedy.

    The command-line tools print it without a traceback and exit with code 2.

    key: name of the component argument to change. `config.registry.build` adds the place where it was set.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class IncompatibleArguments(ValueError):
    """Arguments of a component that are each valid but incompatible with each other.

    key: dotted path, relative to the component, of the argument to change. `config.registry.build` adds the place where
        it was set.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


class Stopped(BaseException):
    """A run that stopped on request, with its progress saved. The command-line tools exit with `code`.

    Derives from BaseException, as KeyboardInterrupt does, so that `except Exception` in a library does not swallow it.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunFailed(Exception):
    """A run that failed without a mistake of the user: a loss that is not finite, a failed comparison.

    The command-line tools print it without a traceback and exit with code 1.
    """


class NotFinite(RunFailed):
    """A loss or gradient is not finite. Raised before any weight is updated."""


class InterruptedUpdate(RunFailed):
    """An error during the weight update of a step, which leaves some weights updated and others not."""
