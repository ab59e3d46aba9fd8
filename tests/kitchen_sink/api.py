"""Routes of every form, as an application's author writes them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Request, Security, UploadFile, WebSocket
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.security import APIKeyHeader, APIKeyQuery
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api.dependencies import CurrentUser, PagingDep, SessionDep
from app.core.client_cache import client_max_age
from app.core.db.database import reading, transaction
from app.core.db.statement_timeout import request_statement_timeout
from app.core.exceptions.http_exceptions import Conflict, Forbidden, NotFound, Unauthorized
from app.core.openapi import SIGN_IN_OPTIONAL, problems
from app.core.schemas import Page
from app.core.utils import queue
from app.core.utils.cache import cache
from app.core.utils.rate_limit import rate_limit_cost
from app.crud.crud_base import CRUDBase
from tests.kitchen_sink.models import (
    Article,
    ArticleCreate,
    ArticleRead,
    ArticleUpdate,
    Everything,
    EverythingCreate,
    EverythingRead,
    Remark,
    RemarkRead,
)

router = APIRouter(prefix="/sink", tags=["kitchen sink"])


class Quota(Exception):  # noqa: N818 -- an error of the application's own, which it handles itself
    """A caller has used up what they bought."""


class ArticleNotFound(NotFound):
    text = "There is no such article."


class TitleTaken(Conflict):
    text = "The title is already taken."


class CRUDEverything(CRUDBase[Everything]):
    model = Everything


class CRUDArticle(CRUDBase[Article]):
    model = Article
    not_found = ArticleNotFound
    problems = {"uq_article_title": TitleTaken}  # noqa: RUF012 -- as an application writes it


crud_everything = CRUDEverything()
crud_articles = CRUDArticle()

# Plain ids: the database refuses those that are out of range.
AnyId = Annotated[int, Path()]


# ---- Every type of column ----


@router.post("/everything", response_model=EverythingRead, status_code=201, responses=problems(Unauthorized))
async def create_everything(_: CurrentUser, values: EverythingCreate, db: SessionDep) -> Everything:
    """Create a row with every type of column."""
    row = await crud_everything.create(db, Everything.model_validate(values.model_dump()))
    await db.refresh(row)
    return row


@router.get("/everything", response_model=Page[EverythingRead])
async def read_all_of_everything(paging: PagingDep) -> Page[Everything]:
    """List them."""
    async with reading() as db:
        return await crud_everything.page(db, paging)


@router.get("/everything/{id}", response_model=EverythingRead, responses=problems(NotFound))
async def read_everything(id: AnyId, db: SessionDep) -> Everything:  # noqa: A002 -- the parameter's name
    """Read one."""
    return await crud_everything.get_present(db, id)


# ---- A resource with an owner, relations, the cache, a limit and a job ----


async def get_own_article(current: CurrentUser, id: AnyId, db: SessionDep) -> Article:  # noqa: A002
    """Return the caller's article in the path."""
    article = await db.get(Article, id, options=[selectinload(Article.remarks)])  # type: ignore[arg-type]
    if article is None:
        raise ArticleNotFound
    if article.author_id != current.id:
        raise Forbidden
    return article


OwnArticle = Annotated[Article, Depends(get_own_article)]


@router.post("/article", response_model=ArticleRead, status_code=201, responses=problems(Unauthorized, TitleTaken))
@rate_limit_cost(2)
async def create_article(current: CurrentUser, values: ArticleCreate, db: SessionDep) -> Article:
    """Write an article. A job counts its words."""
    article = await crud_articles.create(db, Article(author_id=current.id, title=values.title, remarks=[]))
    await queue.pool.enqueue_job("count_words", values.title)
    return article


@router.get("/article/{id}", response_model=ArticleRead, responses=problems(NotFound))
@cache("sink_article", resource_id_name="id")
async def read_article(id: AnyId) -> Article:  # noqa: A002
    """Read an article with its remarks."""
    async with reading() as db:
        article = await db.get(Article, id, options=[selectinload(Article.remarks)])  # type: ignore[arg-type]
    if article is None:
        raise ArticleNotFound
    return article


@router.patch(
    "/article/{id}",
    response_model=ArticleRead,
    responses=problems(Unauthorized, Forbidden, NotFound, TitleTaken),
)
@cache("sink_article", resource_id_name="id")
async def update_article(id: AnyId, article: OwnArticle, values: ArticleUpdate, db: SessionDep) -> Article:  # noqa: A002
    """Change the caller's article."""
    return await crud_articles.update(db, article, values)


@router.delete("/article/{id}", status_code=204, responses=problems(Unauthorized, Forbidden, NotFound))
@cache("sink_article", resource_id_name="id")
async def delete_article(id: AnyId, article: OwnArticle, db: SessionDep) -> None:  # noqa: A002
    """Delete the caller's article."""
    await crud_articles.delete(db, article)


class RemarkCreate(BaseModel):
    body: str  # as a newcomer writes it: NUL and all


@router.put(
    "/article/{id}/remark/{number}",
    response_model=RemarkRead,
    responses=problems(Unauthorized, Forbidden, NotFound, Conflict),
)
@cache("sink_article", resource_id_name="id")
async def put_remark(
    id: AnyId,  # noqa: A002
    number: AnyId,
    article: OwnArticle,
    values: RemarkCreate,
    db: SessionDep,
) -> Remark:
    """Write the remark with this composite key, once. Translates the database's error by itself."""
    remark = Remark(article_id=article.id, number=number, body=values.body)
    db.add(remark)
    try:
        await db.flush()
    except IntegrityError:
        raise HTTPException(409, {"code": "REMARK_EXISTS", "number": number}) from None
    return remark


@router.get("/article/{id}/remark/{number}", response_model=RemarkRead, responses=problems(NotFound))
async def read_remark(id: AnyId, number: AnyId, db: SessionDep) -> Remark:  # noqa: A002
    """Read the remark with this composite key."""
    remark = await db.get(Remark, (id, number))
    if remark is None:
        raise NotFound
    return remark


@router.get("/report", dependencies=[Depends(request_statement_timeout(60))])
async def report(db: SessionDep) -> int:
    """Count, with statements that may take longer than others."""
    return await count_all(db)


# ---- Files and streams ----


class Received(BaseModel):
    size: int


@router.post("/upload", status_code=201, responses=problems(Unauthorized), max_body_size=3_000_000)
async def upload(_: CurrentUser, file: UploadFile) -> Received:
    """Take a file that is larger than the application's body limit."""
    return Received(size=sum([len(part) async for part in _parts(file)]))


async def _parts(file: UploadFile) -> AsyncIterator[bytes]:
    while part := await file.read(65_536):
        yield part


@router.get("/file", response_class=FileResponse, responses={200: {"content": {"text/x-python": {}}}})
async def read_file() -> FileResponse:
    """Send a file, of which ranges can be asked for."""
    return FileResponse(__file__, media_type="text/x-python")


@router.get("/stream", response_class=StreamingResponse, responses={200: {"content": {"text/plain": {}}}})
async def stream() -> StreamingResponse:
    """Send ten lines as they are made, each with a row of the database."""

    async def lines() -> AsyncIterator[str]:
        for number in range(10):
            async with reading() as db:
                found = (await db.exec(select(col(Everything.id)).limit(1))).first()
            yield f"{number} {found is not None}\n"
            await asyncio.sleep(0)

    return StreamingResponse(lines(), media_type="text/plain")


@router.websocket("/echo")
async def echo(websocket: WebSocket, user: CurrentUser) -> None:
    """Send each message back with the user's name and the number of articles."""
    await websocket.accept()
    async for message in websocket.iter_text():
        async with transaction() as db:
            count = await count_all(db)
        await websocket.send_json({"from": user.username, "message": message, "articles": count})


# ---- Answers of unusual form ----


api_key = APIKeyHeader(name="X-Publishing-Key", auto_error=False)


@router.get("/keyed", openapi_extra=SIGN_IN_OPTIONAL)
async def read_keyed(key: Annotated[str | None, Depends(api_key)]) -> dict[str, bool]:
    """Say whether a key was sent: the answer differs by a header of the application's own."""
    return {"known": key == "let me in"}


@router.get("/tenant", openapi_extra=SIGN_IN_OPTIONAL)
async def read_tenant(key: Annotated[str | None, Security(APIKeyQuery(name="key", auto_error=False))]) -> str:
    """Answer by a key in the query."""
    return key or "nobody"


@router.get("/where")
async def read_where(request: Request) -> dict[str, str]:
    """Say where this route is, and what the proxy said of the client."""
    return {"url": str(request.url_for("read_where")), "client": request.client.host if request.client else ""}


@router.get("/language", dependencies=[Depends(client_max_age(30))])
async def read_language(accept_language: Annotated[str, Header()] = "en") -> dict[str, str]:
    """Answer by a header that is not a credential."""
    return {"language": accept_language[:2]}


@router.delete("/nothing", status_code=204)
async def delete_nothing() -> None:
    """Answer without a body."""
    raise HTTPException(204)


@router.get("/quota", include_in_schema=False)
async def read_quota() -> None:
    """Raise an error of the application's own."""
    raise Quota


@router.get("/teapot", include_in_schema=False)
async def read_teapot() -> None:
    """Raise an error with a structured detail."""
    raise HTTPException(418, {"code": "TEAPOT", "sizes": [1, 2]}, {"X-Teapot": "yes"})


async def count_all(db: AsyncSession) -> int:
    """Return the number of articles, for jobs and sockets."""
    return len((await db.exec(select(Article.id))).all())
