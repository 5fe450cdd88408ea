"""Errors that a person can act on. A step prints their one line and no traceback."""


class UserError(Exception):
    """Something outside the code is wrong: a file, a setting, a damaged artifact. The text is one line that says what to do."""


class DamagedArtifact(UserError):
    """An artifact that is not what its manifest says."""
