"""Mail: is there a server, and does it let us in?"""

import asyncio
from typing import Final

import aiosmtplib

from app.core.config import SMTPSettings
from app.core.doctor.finding import Finding, ok, warning
from app.core.mail import _client, _reason, mail_is_on

CHECK = "mail"
SECONDS: Final = 3.0  # to connect, encrypt and sign in


async def check_mail(settings: SMTPSettings) -> list[Finding]:
    """One finding. It signs in and sends nothing."""
    if settings.SMTP_HOST is None:
        if mail_is_on(settings):
            return [ok(CHECK, "none: mails are written to the log")]
        return [
            warning(CHECK, "off: nobody can reset a password", "set SMTP_HOST, and SMTP_USERNAME if it asks for one")
        ]
    address = f"{settings.SMTP_HOST}:{settings.SMTP_PORT}"
    client = _client(settings)
    try:
        async with asyncio.timeout(SECONDS):
            await client.connect()
    except TimeoutError:
        return [_unusable(f"{address} does not answer within {SECONDS:g} s")]
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        return [_unusable(f"{address} does not let us in: {_reason(error)}")]
    finally:
        client.close()
    return [ok(CHECK, f"{address} lets us in")]


def _unusable(text: str) -> Finding:
    return warning(CHECK, text, "correct SMTP_HOST, SMTP_PORT, SMTP_SECURITY, SMTP_USERNAME and SMTP_PASSWORD")
