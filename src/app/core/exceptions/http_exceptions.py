"""The errors an answer can be: one tree, shown as `application/problem+json` (RFC 9457)."""

import re
from typing import Any, ClassVar

from starlette.exceptions import HTTPException

from app.core.exceptions.statuses import phrase_of


class Problem(HTTPException):
    """An error with a status, a title and a sentence for the caller. Subclass it and name what went wrong.

    Class attributes:
        status: the HTTP status code.
        text: the `detail` for the caller, unless the instance brings its own.
        extra_headers: headers of the answer.
        keeps_changes: whether what the request wrote until then is committed, such as the count of failed logins.
    """

    status: ClassVar[int] = 500
    text: ClassVar[str] = ""
    extra_headers: ClassVar[dict[str, str]] = {}
    keeps_changes: ClassVar[bool] = False

    def __init__(self, detail: str | None = None, **members: Any) -> None:
        """
        Args:
            detail: what to tell the caller instead of the class's text.
            members: extension members of the problem document, of any type that a response model can have.
        """
        super().__init__(self.status, detail or self.text or phrase_of(self.status), self.extra_headers)
        self.members = members

    @classmethod
    def problem_type(cls) -> str:
        """The `type` of the problem: stable, and what a client should compare."""
        return f"urn:problem-type:{re.sub(r'(?<!^)(?=[A-Z])', '-', cls.__name__).lower()}"


class BadRequest(Problem):
    status = 400


class Unauthorized(Problem):
    status = 401
    text = "Sign in to do this."
    extra_headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(Problem):
    status = 403
    text = "You may not do this."


class NotFound(Problem):
    status = 404


class Conflict(Problem):
    status = 409


class PayloadTooLarge(Problem):
    status = 413
    text = "The request body is too large."


class Unprocessable(Problem):
    status = 422


class TooManyRequests(Problem):
    status = 429


class ServiceUnavailable(Problem):
    status = 503
    text = "A service this request needs is not available. Try again shortly."
    extra_headers: ClassVar[dict[str, str]] = {"Retry-After": "2"}


# The names of older boilerplates, which take the same text: `raise NotFoundException("There is no such post.")`.
BadRequestException = BadRequest
UnauthorizedException = Unauthorized
ForbiddenException = Forbidden
NotFoundException = NotFound
DuplicateValueException = Conflict
UnprocessableEntityException = Unprocessable
RateLimitException = TooManyRequests
