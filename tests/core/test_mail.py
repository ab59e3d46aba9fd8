"""Mail: readable when it arrives, never in the clear unless told so, and silent about secrets when it fails."""

import shutil
import socket
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.core import mail
from app.core.config import EnvironmentSettings, SettingsError, SettingsGroup, SMTPSettings
from app.core.mail import Mail, MailNotSent, mail_is_on, send_mail
from tests.smtp_server import SMTPServer, self_signed_certificate

pytestmark = pytest.mark.anyio

SECRET = "hunter2-long-and-secret"
TEXT = f"Hello,\n\nhttps://front.example/reset?token={SECRET}\n"
LETTER = Mail("ann@example.com", "Reset your password", TEXT)


class WithEnvironment(SMTPSettings, EnvironmentSettings):
    """The mail's settings where there is an environment, too."""


def settings_for(server: SMTPServer, **values: Any) -> SMTPSettings:
    defaults: dict[str, Any] = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": server.port, "SMTP_SECURITY": "none"}
    return WithEnvironment(**defaults | values)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    return self_signed_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.mark.parametrize("text", ["Plain.\n", "\0\n", f"Grüße, Åsa 🦊\n.a dot first\n{'long ' * 300}\nend \x0b \n"])
async def test_a_mail_arrives_readable(text: str) -> None:
    async with SMTPServer(extensions=()) as server:
        await send_mail(
            settings_for(server), Mail("ann+tag@example.com", f"Passwort zurücksetzen 🔑 {'ß' * 200}", text)
        )

    (received,) = server.mails
    assert (received.sender, received.recipients) == ("noreply@example.com", ["ann+tag@example.com"])
    message = received.message
    assert message["From"] == "noreply@example.com"
    assert message["To"] == "ann+tag@example.com"
    assert message["Subject"] == f"Passwort zurücksetzen 🔑 {'ß' * 200}"
    assert message["Date"].datetime.tzinfo is not None
    assert message["Message-ID"].endswith("@example.com>")
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "text/plain"
    assert message["Content-Transfer-Encoding"] == "quoted-printable"
    assert message.get_content() == text
    assert server.commands[0] == "EHLO example.com"
    assert server.commands[-1] == "QUIT"


@pytest.mark.parametrize(
    ("to", "subject"),
    [
        ("ann@example.com\r\nBcc: eve@example.com", "Hello"),
        ("ann@example.com>\r\nRCPT TO:<eve@example.com", "Hello"),
        ("ann@example.com, eve@example.com", "Hello"),
        ("Ann <ann@example.com>", "Hello"),
        ("ann@example.com\0", "Hello"),
        ("", "Hello"),
        ("ann", "Hello"),
        ("ann@example.com", "Hello\r\nBcc: eve@example.com"),
        ("ann@example.com", "Hello\nBcc: eve@example.com"),
        ("ann@example.com", "Hello\rBcc: eve@example.com"),
        ("ann@example.com", "Hello\x85Bcc: eve@example.com"),
        ("ann@example.com", "Hello\u2028Bcc: eve@example.com"),
        ("ann@example.com", "Hello\0"),
        ("ann@example.com", "Hello\ud800"),
    ],
)
async def test_nothing_gets_into_a_header_but_its_value(to: str, subject: str) -> None:
    async with SMTPServer() as server:
        with pytest.raises(ValueError, match=r"^(A|An|The) "):
            await send_mail(settings_for(server), Mail(to, subject, TEXT))
    assert server.commands == []


async def test_a_domain_of_any_script_needs_no_special_server() -> None:
    async with SMTPServer(extensions=()) as server:
        await send_mail(settings_for(server, SMTP_FROM="noreply@straße.de"), Mail("ann@bücher.example.com", "Hi", TEXT))
    (received,) = server.mails
    assert (received.sender, received.recipients) == ("noreply@xn--strae-oqa.de", ["ann@xn--bcher-kva.example.com"])
    assert received.message["To"] == "ann@xn--bcher-kva.example.com"
    assert received.message["Message-ID"].endswith("@xn--strae-oqa.de>")


async def test_a_name_of_any_script_needs_a_server_that_takes_it() -> None:
    letter = Mail("åsa@bücher.example.com", "Hi", TEXT)
    async with SMTPServer() as server:
        await send_mail(settings_for(server), letter)
    (received,) = server.mails
    assert received.recipients == ["åsa@xn--bcher-kva.example.com"]
    assert received.message["To"] == "åsa@xn--bcher-kva.example.com"

    async with SMTPServer(extensions=("8BITMIME",)) as server:
        with pytest.raises(MailNotSent, match="SMTPUTF8"):
            await send_mail(settings_for(server), letter)
    assert server.mails == []


async def test_long_addresses_arrive_whole() -> None:
    to = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.com"
    async with SMTPServer() as server:
        await send_mail(settings_for(server, SMTP_FROM=to), Mail(to, "Hi", TEXT))
    (received,) = server.mails
    assert (received.sender, received.recipients) == (to, [to])
    assert (received.message["To"], received.message["From"]) == (to, to)


async def test_nothing_is_said_in_the_clear_to_a_server_without_starttls() -> None:
    login = {"SMTP_USERNAME": "ann", "SMTP_PASSWORD": SECRET}
    async with SMTPServer(login=("ann", SECRET)) as server:
        with pytest.raises(MailNotSent, match="STARTTLS"):
            await send_mail(settings_for(server, SMTP_SECURITY="starttls", **login), LETTER)
    assert server.mails == []
    assert {command.split()[0] for command in server.commands} == {"EHLO"}


async def test_starttls_with_a_certificate_that_we_trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    login = {"SMTP_USERNAME": "ann", "SMTP_PASSWORD": SECRET}
    async with SMTPServer(certificate, login=("ann", SECRET)) as server:
        await send_mail(settings_for(server, SMTP_SECURITY="starttls", **login), LETTER)
    assert len(server.mails) == 1
    assert [command.split()[0] for command in server.commands[:4]] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_starttls_with_a_certificate_of_somebody_else(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    if host == "localhost":  # It is trusted, and names 127.0.0.1 only.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with SMTPServer(certificate) as server:
        with pytest.raises(MailNotSent, match="certificate"):
            await send_mail(settings_for(server, SMTP_SECURITY="starttls", SMTP_HOST=host), LETTER)
    assert server.mails == []
    assert [command.split()[0] for command in server.commands] == ["EHLO", "STARTTLS"]


async def test_tls_from_the_start(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SMTPServer(certificate, tls=True) as server:
        with pytest.raises(MailNotSent, match="certificate"):
            await send_mail(settings_for(server, SMTP_SECURITY="tls"), LETTER)
        assert server.commands == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        await send_mail(settings_for(server, SMTP_SECURITY="tls"), LETTER)
    assert len(server.mails) == 1


async def test_tls_from_the_start_does_not_fall_back(certificate: Path) -> None:
    async with SMTPServer(certificate) as server:
        with pytest.raises(MailNotSent):
            await send_mail(settings_for(server, SMTP_SECURITY="tls"), LETTER)
    assert server.mails == []


async def test_a_login_that_is_right() -> None:
    async with SMTPServer(login=("ann", SECRET)) as server:
        await send_mail(settings_for(server, SMTP_USERNAME="ann", SMTP_PASSWORD=SECRET), LETTER)
    assert len(server.mails) == 1


async def test_a_login_that_is_wrong() -> None:
    async with SMTPServer(login=("ann", "another")) as server:
        with pytest.raises(MailNotSent) as stopped:
            await send_mail(settings_for(server, SMTP_USERNAME="ann", SMTP_PASSWORD=SECRET), LETTER)
    assert str(stopped.value) == "SMTPAuthenticationError: 535 5.7.8"
    assert server.mails == []


@pytest.mark.parametrize(
    ("command", "answer", "reason"),
    [
        ("CONNECT", "554 5.7.1 go away", "SMTPConnectResponseError: 554 5.7.1"),
        ("EHLO", "421 busy", "SMTPHeloError: 421"),
        ("MAIL", "550 5.7.1 not you", "SMTPSenderRefused: 550 5.7.1"),
        ("RCPT", "550 5.1.1 <ann@example.com>: no such user", "SMTPRecipientRefused: 550 5.1.1"),
        ("RCPT", "450 later", "SMTPRecipientRefused: 450"),
        ("DATA", "451 later", "SMTPDataError: 451"),
        (".", f"554 5.7.1 bad link {SECRET}", "SMTPDataError: 554 5.7.1"),
        (".", f"{SECRET}", "SMTPResponseException: -1"),
    ],
)
async def test_a_refusal_says_its_code_and_not_the_servers_words(command: str, answer: str, reason: str) -> None:
    async with SMTPServer(answers={command: answer}) as server:
        with pytest.raises(MailNotSent) as stopped:
            await send_mail(settings_for(server), LETTER)
    assert str(stopped.value) == reason
    assert server.mails == []


@pytest.mark.parametrize("command", ["CONNECT", "EHLO", "MAIL", "DATA", "."])
async def test_a_server_that_hangs_is_given_up_in_time(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "TIME_LIMIT", 0.2)
    started = time.monotonic()
    async with SMTPServer(answers={command: ""}) as server:
        with pytest.raises(MailNotSent, match=r"^No answer within 0.2 seconds\.$"):
            await send_mail(settings_for(server), LETTER)
    assert time.monotonic() - started < 1


async def test_the_limit_is_for_all_answers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "TIME_LIMIT", 0.2)
    async with SMTPServer(delay=0.08) as server:
        with pytest.raises(MailNotSent, match="No answer within"):
            await send_mail(settings_for(server), LETTER)
    assert server.mails == []


@pytest.mark.parametrize("answer", ["", "421 too late", "nonsense"])
async def test_a_mail_that_was_taken_was_sent_whatever_comes_after(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "FAREWELL_LIMIT", 0.1)
    async with SMTPServer(answers={"QUIT": answer}) as server:
        await send_mail(settings_for(server), LETTER)
    assert len(server.mails) == 1


async def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(MailNotSent, match=r"Error connecting to 127\.0\.0\.1"):
            await send_mail(settings_for(SMTPServer(port=unused.getsockname()[1])), LETTER)


@pytest.mark.parametrize("host", [f"{'a' * 70}.example.com", "a..b"])
async def test_a_host_that_is_no_host(host: str) -> None:
    with pytest.raises(MailNotSent):
        await send_mail(settings_for(SMTPServer(port=25), SMTP_HOST=host), LETTER)


async def test_a_failure_tells_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    shown = [repr(LETTER)]
    for server in (
        SMTPServer(login=("ann", "another")),
        SMTPServer(login=("ann", SECRET), answers={".": f"554 5.7.1 {TEXT.splitlines()[2]}"}),
        SMTPServer(login=("ann", SECRET), answers={".": SECRET}),
    ):
        async with server:
            with capture_logs() as lines, pytest.raises(MailNotSent) as stopped:
                await send_mail(settings_for(server, SMTP_USERNAME="ann", SMTP_PASSWORD=SECRET), LETTER)
        shown += [repr(lines), *traceback.format_exception(stopped.value)]
    assert SECRET not in "".join(shown) + caplog.text


async def test_in_local_the_log_stands_in_for_a_server() -> None:
    with capture_logs() as lines:
        await send_mail(WithEnvironment(ENVIRONMENT="local"), LETTER)
    text = f"mail to {LETTER.to}\n\n{LETTER.subject}\n\n{LETTER.text}"
    assert lines == [{"event": text, "log_level": "info"}]


@pytest.mark.parametrize("settings", [WithEnvironment(ENVIRONMENT="staging"), SMTPSettings()])
async def test_elsewhere_no_server_is_no_mail(settings: SMTPSettings) -> None:
    with capture_logs() as lines, pytest.raises(MailNotSent, match=r"^SMTP_HOST is not set\.$"):
        await send_mail(settings, LETTER)
    assert lines == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SMTPSettings(SMTP_HOST="mail.example.com"), True),
        (WithEnvironment(ENVIRONMENT="local"), True),
        (WithEnvironment(ENVIRONMENT="staging"), False),
        (SMTPSettings(), False),
        (EnvironmentSettings(ENVIRONMENT="local"), False),
    ],
)
async def test_mail_is_on_where_it_has_somewhere_to_go(settings: SettingsGroup, expected: bool) -> None:
    assert mail_is_on(settings) is expected


PAGE = "an http(s) URL without a query, to which ?token=... is added."


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"SMTP_HOST": "smtp://mail.example.com"}, "SMTP_HOST must be a host name or an IP address."),
        ({"SMTP_PORT": 0}, "SMTP_PORT must be a TCP port, 1 to 65535."),
        ({"SMTP_SECURITY": "ssl"}, "SMTP_SECURITY must be one of starttls, tls, none."),
        ({"SMTP_FROM": "Slipway <noreply@example.com>"}, "SMTP_FROM must be an e-mail address."),
        ({"SMTP_FROM": "noreply@localhost"}, "SMTP_FROM must be an e-mail address."),
        ({"PASSWORD_RESET_URL": "front.example.com/reset"}, f"PASSWORD_RESET_URL must be {PAGE}"),
        ({"PASSWORD_RESET_URL": "javascript:alert(1)"}, f"PASSWORD_RESET_URL must be {PAGE}"),
        ({"EMAIL_VERIFICATION_URL": "https://front.example.com/?a=b"}, f"EMAIL_VERIFICATION_URL must be {PAGE}"),
        ({"EMAIL_VERIFICATION_URL": "https://front.example.com/\n"}, f"EMAIL_VERIFICATION_URL must be {PAGE}"),
        ({"SMTP_USERNAME": "ann"}, "SMTP_PASSWORD must be set where SMTP_USERNAME is."),
        ({"SMTP_PASSWORD": SECRET}, "SMTP_USERNAME must be set where SMTP_PASSWORD is."),
    ],
)
async def test_a_broken_setting_is_one_line(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingsError) as stopped:
        SMTPSettings(**values)
    assert stopped.value.code == fault


@pytest.mark.parametrize(
    "url", ["https://front.example.com", "http://localhost:3000/reset", "https://front.example.com/#/reset"]
)
async def test_a_page_of_the_front_end(url: str) -> None:
    settings = SMTPSettings(PASSWORD_RESET_URL=url)
    assert url == settings.PASSWORD_RESET_URL
