"""How migrations are written from the models. Only `alembic revision` and `alembic check` load this package."""
