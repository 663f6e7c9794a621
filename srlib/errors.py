"""Messages to users: one exception and two warnings."""


class SrlibError(ValueError):
    """Bad input or a missing artefact: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and exits with code 2; Python callers catch this or `ValueError`.
    """


class SrlibWarning(UserWarning):
    """Something that lowers the quality of the result and does not stop the work: one sentence."""


class IncompleteWarning(SrlibWarning):
    """A file holds less audio than its header says; that part was used."""
