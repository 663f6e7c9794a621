"""What users are meant to read: one exception, and the warnings."""


class SrlibError(ValueError):
    """Bad input or a missing artefact: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and exits with code 2; Python callers catch this or `ValueError`.
    """


class SrlibWarning(UserWarning):
    """Something that did not stop the work, and that changes what the result is worth: one sentence."""


class IncompleteWarning(SrlibWarning):
    """A file holds less than it promises; what is there was used."""
