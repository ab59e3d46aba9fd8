"""Why something could not be done, in one line."""


def reason_of(error: BaseException) -> str:
    """What the error says in one line, or its kind when it says nothing."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return next(iter(str(error).splitlines()), "") or type(error).__name__
