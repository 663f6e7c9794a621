"""Messages to users: one exception, two warnings, and the name of an input in them."""

from os import PathLike


class SrlibError(ValueError):
    """Bad input or a missing artefact: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and exits with code 2; Python callers catch this or `ValueError`.
    """


class SrlibWarning(UserWarning):
    """Something that lowers the quality of the result and does not stop the work: one sentence."""


class IncompleteWarning(SrlibWarning):
    """A file holds less audio than its header says; that part was used."""


def one_line(message: object) -> str:
    """A message, such as another library's, without line breaks."""
    return " ".join(str(message).split()) or "no reason given"


def input_name(path: str | PathLike) -> str:
    """How messages call an input: its path, or standard input for `-`."""
    return "standard input" if str(path) == "-" else str(path)
