"""The one exception that users are meant to read."""


class SrlibError(ValueError):
    """Bad input or a missing artefact: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and exits with code 2; Python callers catch this or `ValueError`.
    """
