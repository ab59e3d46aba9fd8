"""What every resource's CRUD has: one row at a time, and pages. It flushes; the edge commits."""

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, overload
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import ColumnElement, delete, func, inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.interfaces import ORMOption
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.db.database import violated_constraint
from app.core.exceptions.http_exceptions import NotFound, Problem
from app.core.schemas import Page
from app.crud.helper import Paging

ModelT = TypeVar("ModelT", bound=SQLModel)
SchemaT = TypeVar("SchemaT", bound=BaseModel)


class CRUDBase(Generic[ModelT]):
    """Base of `crud_users`, `crud_tiers` and their like. Add finders with names of their own.

    Class attributes:
        model: the table.
        problems: what a violated constraint means to the caller, by the constraint's name.
        not_found: the error for a row that is not there (any more).
    """

    model: type[ModelT]
    problems: ClassVar[dict[str, type[Problem]]] = {}
    not_found: ClassVar[type[NotFound]] = NotFound

    @overload
    async def get(
        self,
        db: AsyncSession,
        id: int | str | UUID,
        *,
        schema_to_select: None = None,
        options: Sequence[ORMOption] = (),
    ) -> ModelT | None: ...

    @overload
    async def get(
        self,
        db: AsyncSession,
        id: int | str | UUID,
        *,
        schema_to_select: type[SchemaT],
        options: Sequence[ORMOption] = (),
    ) -> SchemaT | None: ...

    async def get(
        self,
        db: AsyncSession,
        id: int | str | UUID,  # noqa: A002 -- the column's name
        *,
        schema_to_select: type[SchemaT] | None = None,
        options: Sequence[ORMOption] = (),
    ) -> ModelT | SchemaT | None:
        """Return the row with this primary key, or None.

        Args:
            schema_to_select: a Pydantic model such as `PostRead`, of which an instance is returned instead of the row.
            options: loader options, such as `selectinload(Post.author)`.

        Raises: ValidationError of Pydantic for a row that does not fit the schema.
        """
        # With options the row is read anew: one that the session has already would stay without what they load.
        row = await db.get(self.model, id, options=options, populate_existing=bool(options))
        if row is None or schema_to_select is None:
            return row
        return schema_to_select.model_validate(row, from_attributes=True)

    async def get_present(
        self,
        db: AsyncSession,
        id: int | str | UUID,  # noqa: A002 -- the column's name
        *,
        options: Sequence[ORMOption] = (),
    ) -> ModelT:
        """The same, as it is by now. Raises: `not_found`."""
        row = await db.get(self.model, id, populate_existing=True, options=options)
        if row is None:
            raise self.not_found
        return row

    async def create(self, db: AsyncSession, row: ModelT) -> ModelT:
        """Inserts a row. Raises: the Problem of the constraint it violates."""
        db.add(row)
        await self._flush(db)
        return row

    async def update(self, db: AsyncSession, row: ModelT, values: BaseModel) -> ModelT:
        """Changes the fields that were given. Raises: the Problem of a violated constraint, or `not_found`."""
        for name, value in values.model_dump(exclude_unset=True).items():
            setattr(row, name, value)
        await self._flush(db)
        return row

    async def load(self, db: AsyncSession, row: ModelT, *options: ORMOption) -> ModelT:
        """Read a row anew, with what the options load of it: after `create` or `update`, for an answer with relations.

        Args:
            row: one of this session. It is flushed first.
            options: loader options, such as `selectinload(Post.author)`.

        Returns: the same object. Raises: the Problem of a violated constraint, or `not_found`.
        """
        await self._flush(db)
        if await db.get(self.model, inspect(row).identity, options=options, populate_existing=True) is None:
            raise self.not_found
        return row

    async def delete(self, db: AsyncSession, row: ModelT) -> None:
        """Removes a row. Raises: the Problem of a violated constraint, or `not_found` if somebody was faster."""
        try:
            result = await db.exec(delete(self.model).where(self._id == row.id))  # type: ignore[attr-defined]
        except IntegrityError as error:
            self._translate(error)
        if result.rowcount == 0:
            raise self.not_found

    async def page(
        self,
        db: AsyncSession,
        paging: Paging,
        *where: ColumnElement[bool],
        order_by: Sequence[Any] = (),
        options: Sequence[ORMOption] = (),
    ) -> Page[ModelT]:
        """One page of the rows that fulfil the conditions; rows that `order_by` holds equal come as they were made."""
        total = (await db.exec(select(func.count()).select_from(self.model).where(*where))).one()
        ordered = select(self.model).where(*where).order_by(*order_by, self._id).options(*options)
        rows = await db.exec(ordered.offset(paging.offset).limit(paging.items_per_page))
        return paging.page_of(list(rows.unique()), total)

    @property
    def _id(self) -> Any:
        return col(self.model.id)  # type: ignore[attr-defined]

    async def _flush(self, db: AsyncSession) -> None:
        try:
            await db.flush()
        except IntegrityError as error:
            self._translate(error)
        except StaleDataError as error:  # the row was removed since it was read
            raise self.not_found from error

    def _translate(self, error: IntegrityError) -> NoReturn:
        problem = self.problems.get(violated_constraint(error) or "")
        if problem is None:
            raise error
        raise problem from error
