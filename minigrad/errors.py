"""The two ways in which a run ends badly without a bug being the reason."""


class UserError(ValueError):
    """A mistake in what was asked for; the message says what was expected, what came and what to do.

    The command line prints it as one line and exits with code 2.
    """


class RunFailed(RuntimeError):  # noqa: N818 - it names what happened, and an experiment raises it to say so
    """A run that did what was asked and came out wrong: a value that does not verify, a loss that is not finite.

    The command line prints its numbers without a traceback and exits with code 1.
    """
