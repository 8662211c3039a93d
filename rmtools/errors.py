"""The one exception a user is meant to read: what is wrong, why it matters, and what to do.

>>> raise UserError("n_particles must be at least 1, got 0", fix="pass -n 16")
Traceback (most recent call last):
...
rmtools.errors.UserError: n_particles must be at least 1, got 0; fix: pass -n 16
"""


class UserError(ValueError):
    """Wrong usage or bad input: the command line prints it on one line and exits with 2.

    Parameters
    ----------
    fact : str
        What is wrong, with the reason ("`ess_threshold` must be in [0, 1], got 32: it is a fraction").
    fix : str
        What the user can do about it; valid choices are listed here.

    Examples
    --------
    >>> import rmtools as rm
    >>> try:
    ...     rm.Tilt(floor=2)
    ... except rm.UserError as error:
    ...     print(error.fix)
    choose a floor below the success rate, for example 0.01
    """

    def __init__(self, fact: str, fix: str = "") -> None:
        super().__init__(f"{fact}; fix: {fix}" if fix else fact)
        self.fact, self.fix = fact, fix


def reason(error: Exception, lines: int = 1) -> str:
    r"""Return what a library's exception says, in its first lines; of a missing key its name alone says little.

    >>> reason(KeyError("added_tokens")), reason(ValueError("  no\nmore")), reason(OSError())
    ("'added_tokens' is missing", 'no', 'OSError')
    """
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{said[0]} is missing" if isinstance(error, KeyError) else " ".join(said[:lines])[:300]
