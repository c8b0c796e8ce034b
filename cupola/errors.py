"""Errors that a user may see: one clear line each, saying what, where, and how to mend it.

Every other exception is a bug in Cupola. The command line turns these into `error: ...` on standard
error and the exit status that the class carries; nothing below the command line prints or exits.
"""


class CupolaError(Exception):
    """A run that could not go on (a full disk, a checkpoint that will not verify). Exit status 1.

    Args:
        problem: what is wrong, and where.
        cure: what the user does about it, where that is not said in `problem`; code that mends it by itself
            shows `problem` alone.
    """

    exit_status = 1

    def __init__(self, problem: str, cure: str = "") -> None:
        super().__init__(f"{problem}; {cure}" if cure else problem)
        self.problem = problem


class InputError(CupolaError):
    """Something the user gave is wrong: a recipe, a file, an option. Exit status 2."""

    exit_status = 2


class Interrupted(CupolaError):
    """The user asked to stop; everything up to here is saved. Exit status 130."""

    exit_status = 130
