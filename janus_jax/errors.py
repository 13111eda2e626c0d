"""The one exception for mistakes a person can mend: a wrong path, file, field or number."""


class JanusError(ValueError):
    """A mistake in the user's input, told in one sentence: what is wrong, where, and what would be right.

    Commands print the sentence and end with exit code 2; a library caller catches it as a `ValueError`.
    """
