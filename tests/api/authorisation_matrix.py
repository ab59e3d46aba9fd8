"""Who may do what: the status of every route for every kind of caller.

A new route gets a row here, and a body if it needs one: `test_authorisation_matrix.py` asks every cell, and fails
when the table lacks a route of the app or has one too many.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.models.mail_token import MailPurpose
from app.models.user import User
from tests.helper import PASSWORD
from tests.images import png

CALLERS = ("anonymous", "owner", "other", "deleted", "superuser")

# The owner is the user in the path, or who enqueued the task; where nothing is owned, an ordinary signed-in user.
# The deleted user comes with the tokens they had before. The superuser always acts on the owner's things.
# fmt: off
MATRIX = {
    #                                                   anonymous  owner  other  deleted  superuser
    ("GET",    "/health"):                              (200,      200,   200,   200,     200),
    ("GET",    "/ready"):                               (200,      200,   200,   200,     200),
    ("POST",   "/login"):                               (200,      200,   200,   200,     200),
    ("POST",   "/refresh"):                             (401,      200,   200,   401,     200),
    ("POST",   "/logout"):                              (401,      200,   200,   200,     200),
    ("POST",   "/password_reset"):                      (202,      202,   202,   202,     202),
    ("POST",   "/password_reset/confirm"):              (200,      200,   200,   200,     200),
    ("POST",   "/email_verification"):                  (401,      202,   202,   401,     202),
    ("POST",   "/email_verification/confirm"):          (200,      200,   200,   200,     200),
    ("POST",   "/user"):                                (201,      201,   201,   201,     201),
    ("GET",    "/user/me"):                             (401,      200,   200,   401,     200),
    ("GET",    "/user/me/"):                            (401,      200,   200,   401,     200),
    ("POST",   "/user/me/password"):                    (401,      200,   200,   401,     200),
    ("GET",    "/user/me/usage"):                       (401,      200,   200,   401,     200),
    ("GET",    "/user/me/sessions"):                    (401,      200,   200,   401,     200),
    ("DELETE", "/user/me/sessions"):                    (401,      200,   200,   401,     200),
    ("DELETE", "/user/me/sessions/{id}"):               (401,      200,   404,   401,     404),
    ("GET",    "/users"):                               (200,      200,   200,   401,     200),
    ("GET",    "/user/{username}"):                     (200,      200,   200,   401,     200),
    ("PATCH",  "/user/{username}"):                     (401,      200,   403,   401,     200),
    ("PUT",    "/user/{username}/profile_image"):       (401,      200,   403,   401,     200),
    ("GET",    "/media/{folder}/{owner}/{name}"):       (200,      200,   200,   200,     200),
    ("DELETE", "/user/{username}"):                     (401,      200,   403,   401,     403),
    ("DELETE", "/db_user/{username}"):                  (401,      403,   403,   401,     200),
    ("GET",    "/user/{username}/sessions"):            (401,      403,   403,   401,     200),
    ("DELETE", "/user/{username}/sessions"):            (401,      403,   403,   401,     200),
    ("GET",    "/user/{username}/tier"):                (401,      200,   403,   401,     200),
    ("PATCH",  "/user/{username}/tier"):                (401,      403,   403,   401,     200),
    ("GET",    "/user/{username}/rate_limits"):         (401,      200,   403,   401,     200),
    ("POST",   "/tier"):                                (401,      403,   403,   401,     201),
    ("GET",    "/tiers"):                               (200,      200,   200,   200,     200),
    ("GET",    "/tier/{name}"):                         (200,      200,   200,   200,     200),
    ("PATCH",  "/tier/{name}"):                         (401,      403,   403,   401,     200),
    ("DELETE", "/tier/{name}"):                         (401,      403,   403,   401,     200),
    ("POST",   "/tier/{tier_name}/rate_limit"):         (401,      403,   403,   401,     201),
    ("GET",    "/tier/{tier_name}/rate_limits"):        (200,      200,   200,   200,     200),
    ("GET",    "/tier/{tier_name}/rate_limit/{id}"):    (200,      200,   200,   200,     200),
    ("PATCH",  "/tier/{tier_name}/rate_limit/{id}"):    (401,      403,   403,   401,     200),
    ("DELETE", "/tier/{tier_name}/rate_limit/{id}"):    (401,      403,   403,   401,     200),
    ("GET",    "/security_events"):                     (401,      403,   403,   401,     200),
    ("POST",   "/tasks/task"):                          (201,      201,   201,   401,     201),
    ("GET",    "/tasks"):                               (401,      200,   200,   401,     200),
    ("GET",    "/tasks/task/{task_id}"):                (404,      200,   404,   401,     200),
    ("GET",    "/tasks/task/{task_id}/events"):         (404,      200,   404,   401,     200),
    ("POST",   "/tasks/task/{task_id}/cancel"):         (401,      200,   404,   401,     200),
    ("POST",   "/tasks/task/{task_id}/replay"):         (401,      403,   403,   401,     200),
}
# fmt: on


@dataclass(frozen=True)
class World:
    """What is there when one cell is asked: names that no other cell has."""

    owner: User
    path: dict[str, Any]
    tier_id: int
    mail_tokens: dict[MailPurpose, str]
    new: str


# What a row sends, always valid.
Body = Callable[[World], dict[str, Any]]
BODIES: dict[tuple[str, str], Body] = {
    ("POST", "/login"): lambda world: {"data": {"username": world.owner.username, "password": PASSWORD}},
    ("POST", "/password_reset"): lambda world: {"json": {"email": world.owner.email}},
    ("POST", "/password_reset/confirm"): lambda world: {
        "json": {"token": world.mail_tokens[MailPurpose.PASSWORD_RESET], "new_password": "analytical engine"}
    },
    ("POST", "/email_verification/confirm"): lambda world: {
        "json": {"token": world.mail_tokens[MailPurpose.EMAIL_VERIFICATION]}
    },
    ("POST", "/user"): lambda world: {
        "json": {"name": "New", "username": world.new, "email": f"{world.new}@example.com", "password": PASSWORD}
    },
    ("POST", "/user/me/password"): lambda _: {
        "json": {"current_password": PASSWORD, "new_password": "analytical engine"}
    },
    ("PATCH", "/user/{username}"): lambda _: {"json": {"name": "Changed"}},
    ("PUT", "/user/{username}/profile_image"): lambda _: {"content": png()},
    ("PATCH", "/user/{username}/tier"): lambda world: {"json": {"tier_id": world.tier_id}},
    ("POST", "/tier"): lambda world: {"json": {"name": world.new}},
    ("PATCH", "/tier/{name}"): lambda world: {"json": {"name": world.new}},
    ("POST", "/tier/{tier_name}/rate_limit"): lambda _: {
        "json": {"name": "new", "path": "/api/v1/users", "limit": 1, "period": 1}
    },
    ("PATCH", "/tier/{tier_name}/rate_limit/{id}"): lambda _: {"json": {"limit": 99}},
    ("POST", "/tasks/task"): lambda _: {"params": {"message": "hello"}},
}
NEED_A_COOKIE = {("POST", "/refresh"), ("POST", "/logout")}
# The stream of one that waits does not end, and one that has not ended cannot be replayed.
NEED_AN_ENDED_TASK = {"/tasks/task/{task_id}/events", "/tasks/task/{task_id}/replay"}
