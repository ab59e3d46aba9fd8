"""What the console's pages share: how they ask, change, write down what they did, and say what went wrong."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, ClassVar, Final, Generic, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette_admin.actions import ActionSelection
from starlette_admin.contrib.sqlmodel import ModelView
from starlette_admin.exceptions import ActionFailed, FormValidationError
from starlette_admin.filters import FilterGroup
from starlette_admin.helpers import not_none, pydantic_error_to_form_validation_errors
from starlette_admin.types import RequestAction, RowActionsDisplayType
from starlette_admin.views import CustomView

from app.admin.gate import Operator
from app.api.dependencies import get_client
from app.core.db.data_errors import problem_of
from app.core.exceptions.http_exceptions import NotFound, Problem
from app.crud.crud_console_action import crud_console_actions
from app.crud.crud_security_event import Client

VERSION: Final = "version"  # the hidden field of a form for editing
LONGEST_FILTER: Final = 2_000  # characters
CHANGED_MEANWHILE: Final = "Somebody has changed this since you loaded it. Load the page again, and repeat your change."

RowT = TypeVar("RowT", bound=SQLModel)


def session_of(request: Request) -> AsyncSession:
    """The request's transaction, which the gate has opened."""
    db: AsyncSession = request.state.session
    return db


def operator_of(request: Request) -> Operator:
    """Who has asked."""
    operator: Operator = request.state.operator
    return operator


def app_of(request: Request) -> FastAPI:
    """The app whose console it is."""
    app: FastAPI = request.app.state.main
    return app


async def client_of(request: Request) -> Client:
    """Where they ask from."""
    return await get_client(request)


async def audit(
    request: Request, action: str, target: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Writes down what was done, in the transaction that does it.

    Args:
        action: such as `user.edit`.
        target: such as `user 5`.
        before, after: what has changed; nothing secret.
    """
    await crud_console_actions.record(
        session_of(request),
        operator_of(request).user,
        await client_of(request),
        action,
        target,
        dict(before),
        dict(after),
    )


class ConsolePage(CustomView):
    """A page that is about more than one table."""

    def page(self, request: Request, template: str, values: dict[str, Any]) -> Response:
        """The page, from `templates/console/`."""
        context = {"title": self.title(request), "view": self, **values}
        return not_none(self._admin)._template_response(request, f"console/{template}", context)


class ConsoleView(ModelView, Generic[RowT]):
    """A list of rows and a page for each. What changes one goes through the app's own functions and is written down.

    Nothing can be made, changed or removed unless the view says how: `create_schema` and `make`, `update_schema` and
    `change`, `remove`.

    Class attributes:
        noun: what the audit trail calls a row.
        create_schema, update_schema: what a form's values have to be.
        fields_of_problems: which field of the form an error is about.
    """

    noun: ClassVar[str]
    create_schema: ClassVar[type[BaseModel] | None] = None
    update_schema: ClassVar[type[BaseModel] | None] = None
    fields_of_problems: ClassVar[dict[type[Problem], str]] = {}

    exporters = ()
    importers = ()
    actions: Sequence[str] = ()
    row_actions: Sequence[str] = ("view",)
    row_actions_display_type = RowActionsDisplayType.INLINE_LINKS
    column_visibility = False
    page_size = 25

    def can_create(self, request: Request) -> bool:
        return self.create_schema is not None

    def can_edit(self, request: Request) -> bool:
        return self.update_schema is not None

    def can_delete(self, request: Request) -> bool:
        return type(self).remove is not ConsoleView.remove

    def can_export(self, request: Request) -> bool:
        return False

    def can_import(self, request: Request) -> bool:
        return False

    # ---- What a view says ----

    async def make(self, request: Request, values: Any) -> RowT:
        """Makes a row of the form's values."""
        raise NotImplementedError

    async def change(self, request: Request, row: RowT, values: Any) -> RowT:
        """Changes a row; `values` has set only what differs."""
        raise NotImplementedError

    async def remove(self, request: Request, row: RowT) -> None:
        """Removes a row."""
        raise NotImplementedError

    def target(self, row: RowT) -> str:
        """What the audit trail calls it."""
        return f"{self.noun} {getattr(row, not_none(self.pk_attr))}"

    # ---- What the library asks ----

    async def create(self, request: Request, data: dict[str, Any]) -> Any:
        with self._as_form_errors():
            values = not_none(self.create_schema).model_validate(data)
            row = await self.make(request, values)
        await audit(request, f"{self.noun}.create", self.target(row), {}, values.model_dump(mode="json"))
        return row

    async def edit(self, request: Request, pk: Any, data: dict[str, Any]) -> Any:
        row = await self.find_by_pk(request, pk)
        await session_of(request).refresh(row, with_for_update={"key_share": True})
        await self._refuse_what_is_older(request, row)
        changed = {name: value for name, value in data.items() if value != self.current(row, name)}
        if not changed:
            return row
        with self._as_form_errors():
            values = not_none(self.update_schema).model_validate(changed)
            before = {name: self.current(row, name) for name in changed}
            row = await self.change(request, row, values)
        after = values.model_dump(mode="json", exclude_unset=True)
        await audit(request, f"{self.noun}.edit", self.target(row), before, after)
        return row

    def version(self, request: Request, row: RowT) -> str:
        """What a form's values are when it is loaded; of one that was sent, what they were then."""
        sent: str | None = getattr(request.state, "form_version", None)
        return self._version_of(request, row) if sent is None else sent

    def _version_of(self, request: Request, row: RowT) -> str:
        values = [
            (one.name, self.current(row, one.name)) for one in self.get_fields_list(request, action=RequestAction.EDIT)
        ]
        return sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()

    async def _refuse_what_is_older(self, request: Request, row: RowT) -> None:
        """A form sends all of its fields: of two operators, the second would take back what the first has changed."""
        now = self._version_of(request, row)
        sent = request.state.form_version = str((await request.form()).get(VERSION, now))
        if sent != now:
            raise FormValidationError({VERSION: CHANGED_MEANWHILE})

    def current(self, row: RowT, name: str) -> Any:
        """A row's value, as the form would send it."""
        return getattr(row, name)

    async def delete(self, request: Request, pks: list[Any]) -> int | None:
        rows = await self.find_by_pks(request, pks)
        for row in rows:
            target, before = self.target(row), self.shown(row)
            await self.remove(request, row)
            await audit(request, f"{self.noun}.delete", target, before, {})
        return len(rows)

    def shown(self, row: RowT) -> dict[str, Any]:
        """What the list shows of a row: what the audit trail keeps of one that is removed."""
        return {field.name: getattr(row, field.name, None) for field in self._all_fields}

    async def find_by_pk(self, request: Request, pk: Any) -> Any:
        try:
            return await super().find_by_pk(request, pk)
        except (ValueError, OverflowError):  # No id has this form.
            return None

    async def find_by_pks(self, request: Request, pks: list[Any]) -> Any:
        try:
            return await super().find_by_pks(request, pks)
        except (ValueError, OverflowError) as error:
            raise NotFound from error

    async def handle_action(self, request: Request, selection: ActionSelection, name: str) -> Response | None:
        with _as_failures():
            return await super().handle_action(request, selection, name)

    async def handle_row_action(self, request: Request, pk: Any, name: str) -> Response | None:
        if self._row_actions.get(name, {}).get("is_link"):  # The library would await what is no coroutine.
            raise ActionFailed("This is a link.")
        with _as_failures():
            return await super().handle_row_action(request, pk, name)

    def _parse_filter_param(self, request: Request, query_params: Mapping[str, str] | None = None) -> FilterGroup:
        if len((request.query_params if query_params is None else query_params).get("filter") or "") > LONGEST_FILTER:
            raise HTTPException(400, "The filter is too long.")  # A page says each of its conditions several times.
        return super()._parse_filter_param(request, query_params)

    @contextmanager
    def _as_form_errors(self) -> Iterator[None]:
        try:
            yield
        except ValidationError as error:
            raise _said_to_people(error) from error
        except Problem as problem:
            field = next((name for kind, name in self.fields_of_problems.items() if isinstance(problem, kind)), None)
            if field is None:
                raise
            raise FormValidationError({field: str(problem.detail)}) from problem


@contextmanager
def _as_failures() -> Iterator[None]:
    """An error of ours is said where an action's outcome is said."""
    try:
        yield
    except Problem as problem:
        raise ActionFailed(str(problem.detail)) from problem
    except SQLAlchemyError as error:
        if (refused := problem_of(error)) is None:
            raise
        raise ActionFailed(str(refused.detail)) from error


def _said_to_people(error: ValidationError) -> FormValidationError:
    """What is wrong with which field."""
    said = pydantic_error_to_form_validation_errors(error)
    errors = {name: text.removeprefix("Value error, ") for name, text in said.errors.items() if isinstance(text, str)}
    return FormValidationError({**said.errors, **errors})
