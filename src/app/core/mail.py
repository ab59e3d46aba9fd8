"""Mail over SMTP: one plain-text message to one address, by a server that the settings name."""

import asyncio
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import make_msgid

import aiosmtplib
import structlog
from email_validator import ValidatedEmail, validate_email

from app.core.config import EnvironmentOption, SettingsGroup, SMTPSettings, environment_of
from app.core.db.models import utc_now

TIME_LIMIT = 10.0  # seconds, for all of one mail, from the connection to the server's yes
FAREWELL_LIMIT = 1.0  # seconds
FORBIDDEN_IN_HEADERS = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of control characters and line ends

log = structlog.stdlib.get_logger("slipway.mail")


class MailNotSent(Exception):  # noqa: N818 -- a fact, with its reason
    """The mail server was not reached, or took nothing. Its text holds neither the password nor the mail's text."""


@dataclass(frozen=True, slots=True)
class Mail:
    """A plain text; it is left out of `repr` for the links in it that let somebody in."""

    to: str
    subject: str
    text: str = field(repr=False)


def mail_is_on(settings: SettingsGroup) -> bool:
    """Whether `send_mail` has somewhere to send to; in `local` the log will do."""
    return isinstance(settings, SMTPSettings) and (settings.SMTP_HOST is not None or _is_local(settings))


async def send_mail(settings: SMTPSettings, mail: Mail) -> None:
    """Hands the mail to the server; in `local` without a server, writes it to the log.

    Raises: MailNotSent; ValueError for an address that is none, or a control character in the subject.
    """
    message = _message(settings, mail)
    if settings.SMTP_HOST is not None:
        await _submit(_client(settings), message)
    elif _is_local(settings):
        # As it would be read, and so that a token in it can be copied.
        log.info(f"mail to {mail.to}\n\n{mail.subject}\n\n{mail.text}")
    else:
        raise MailNotSent("SMTP_HOST is not set.")


def _is_local(settings: SettingsGroup) -> bool:
    return environment_of(settings) is EnvironmentOption.LOCAL


def _message(settings: SMTPSettings, mail: Mail) -> EmailMessage:
    if any(unicodedata.category(character) in FORBIDDEN_IN_HEADERS for character in mail.subject):
        raise ValueError("A mail's subject must be one line without control characters.")
    message = EmailMessage(policy=SMTP)
    message["From"] = _address(settings.SMTP_FROM)
    message["To"] = _address(mail.to)
    message["Subject"] = mail.subject
    message["Date"] = utc_now()
    message["Message-ID"] = make_msgid(domain=_parsed(settings.SMTP_FROM).ascii_domain)
    message["Auto-Submitted"] = "auto-generated"
    # Lines of any length and any character pass every server in this encoding.
    message.set_content(mail.text, cte="quoted-printable")
    return message


def _address(address: str) -> Address:
    """The address with its domain in punycode, which all servers read. Raises: ValueError."""
    parsed = _parsed(address)
    return Address(username=parsed.local_part, domain=parsed.ascii_domain)


def _parsed(address: str) -> ValidatedEmail:
    return validate_email(address, check_deliverability=False)


def _client(settings: SMTPSettings) -> aiosmtplib.SMTP:
    password = settings.SMTP_PASSWORD
    return aiosmtplib.SMTP(
        hostname=settings.SMTP_HOST,
        port=settings.SMTP_PORT,
        username=settings.SMTP_USERNAME,
        password=password.get_secret_value() if password is not None else None,
        # The default asks the name service, which may take longer than all the rest.
        local_hostname=_parsed(settings.SMTP_FROM).ascii_domain,
        use_tls=settings.SMTP_SECURITY == "tls",
        start_tls=settings.SMTP_SECURITY == "starttls",  # True requires it, where the default would do without.
        timeout=TIME_LIMIT,
    )


async def _submit(client: aiosmtplib.SMTP, message: EmailMessage) -> None:
    # Not `async with client`: when time is up, that would say goodbye to a server that does not answer.
    try:
        async with asyncio.timeout(TIME_LIMIT):
            await client.connect()
            await client.send_message(message)
        # By now the server has the mail: whatever it says, sending again would make two of it.
        with suppress(aiosmtplib.SMTPException, OSError):
            await client.quit(timeout=FAREWELL_LIMIT)
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        raise MailNotSent(_reason(error)) from None
    finally:
        client.close()


_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")  # RFC 3463


def _reason(error: Exception) -> str:
    """The kind of fault. Of the server's answer only the codes: its words may quote the mail or the login."""
    refusal = error.recipients[0] if isinstance(error, aiosmtplib.SMTPRecipientsRefused) else error
    if isinstance(refusal, aiosmtplib.SMTPResponseException):
        status = _STATUS.match(refusal.message)
        return f"{type(refusal).__name__}: {refusal.code}{f' {status[0]}' if status else ''}"
    if isinstance(error, TimeoutError):
        return f"No answer within {TIME_LIMIT:g} seconds."
    return f"{type(error).__name__}: {error}"
