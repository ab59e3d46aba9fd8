"""The application: the one place where all parts meet."""

from fastapi import Depends

from app.api import build_router
from app.api.dependencies import get_current_superuser
from app.core.config import environment_of, get_settings
from app.core.logger import configure_logging
from app.core.setup import create_application

settings = get_settings()
configure_logging(environment_of(settings))
app = create_application(router=build_router(settings), settings=settings, docs_guard=[Depends(get_current_superuser)])
