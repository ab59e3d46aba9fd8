"""What Python in docs/events.md stands in (tests/docs/surroundings.py)."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from sqlalchemy import event as sqlalchemy_event

from app.api import build_router
from app.core.db import changes
from app.core.db.database import close_database, open_database, reading, transaction
from app.core.events import Subscription, subscribe
from app.core.setup import create_application
from app.core.utils.cache import cache
from app.crud.crud_users import crud_users
from app.models.tier import Tier
from tests.docs.surroundings import Code
from tests.helper import create_superuser, create_user, signed_in


async def subscriptions(code: Code) -> None:
    """Posts that are cached with their author's name, which changes."""
    found: Sequence[Subscription] = (await code.run())["SUBSCRIPTIONS"]
    router = APIRouter()

    async def author(username: str) -> str:
        async with reading() as db:
            user = await crud_users.look_up(db, username)
            return user.name if user is not None else "nobody"

    @router.get("/{username}/posts")
    @cache("{username}_posts", resource_id_name="username")
    async def read_posts(username: str) -> list[str]:
        return [f"A post by {await author(username)}"]

    @router.get("/{username}/post/{number}")
    @cache("{username}_post_cache", resource_id_name="number")
    async def read_post(username: str, number: int) -> str:
        return f"Post {number} by {await author(username)}"

    everything = build_router(code.settings)
    everything.include_router(router)
    app = create_application(everything, code.settings, subscriptions=found)
    async with code.started(app=app) as client:
        async with transaction() as db:
            ada = await create_user(db, username="ada", name="Ada")
            other = await create_user(db, username="other", name="Other")
            admin = await create_superuser(db)
        paths = ["ada/posts", "ada/post/7", "other/posts"]
        for state in ("MISS", "HIT"):
            assert [(await client.get(path)).headers["X-Cache"] for path in paths] == [state] * 3
        headers = signed_in(ada, code.settings)
        assert (await client.patch("user/ada", json={"name": "Ada L."}, headers=headers)).status_code == 200
        assert [(await client.get(path)).json() for path in paths[:2]] == [["A post by Ada L."], "Post 7 by Ada L."]
        assert (await client.get(paths[2])).headers["X-Cache"] == "HIT", other.username
        assert (await client.patch("user/ada", json={"username": "grace"}, headers=headers)).status_code == 200
        assert (await client.get("ada/posts")).json() == ["A post by nobody"]
        assert (await client.delete("db_user/grace", headers=signed_in(admin, code.settings))).status_code == 200


async def own_events(code: Code) -> None:
    """Events of tiers, which are tracked for this test only."""
    told: list[Any] = []
    try:
        names = await code.run()

        async def note(db: Any, event: Any) -> None:
            told.append((event.id, event.name))

        engine = open_database(code.settings, subscriptions=[subscribe(names["TierRenamed"], note)])
        try:
            async with transaction() as db:
                tier = Tier(name="pro")
                db.add(tier)
                await db.commit()
                tier.name = "gold"
            assert told == [(tier.id, "gold")]
        finally:
            await close_database(engine)
    finally:
        changes._tracked.pop("tier")
        for name, listener in (
            ("after_insert", changes._note_new),
            ("before_update", changes._note_changed),
            ("before_delete", changes._note_removed),
        ):
            sqlalchemy_event.remove(Tier, name, listener)
