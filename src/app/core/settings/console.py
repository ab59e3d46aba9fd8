"""The operator's console."""

from pydantic import Field

from app.core.settings.base import SettingsGroup


class ConsoleSettings(SettingsGroup):
    """Switches the console at `/admin`. It needs the database and sign-in."""

    CONSOLE_ENABLED: bool = Field(True, description="whether there is a console: true or false")
    CONSOLE_IDLE_MINUTES: int = Field(
        60, ge=1, le=1440, description="the number of minutes after which an unused console login ends, 1 to 1440"
    )
    CONSOLE_SESSION_HOURS: int = Field(
        12, ge=1, le=720, description="the number of hours after which any console login ends, 1 to 720"
    )
    CONSOLE_AUDIT_DAYS: int = Field(
        365, ge=1, le=36_500, description="for how many days it is kept what was done in the console"
    )
    TEMPORARY_PASSWORD_HOURS: int = Field(
        24, ge=1, le=720, description="for how many hours a temporary password is good, 1 to 720"
    )
