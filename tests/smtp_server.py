"""A mail server for tests: keeps what it is given, and fails in the ways that it is told to."""

import asyncio
import subprocess
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass, field
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext, SSLError
from typing import Self


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """A mail with its envelope."""

    sender: str
    recipients: list[str]
    message: EmailMessage


@dataclass
class SMTPServer:
    """Listens on `port` of 127.0.0.1 inside of `async with`.

    Attributes:
        certificate: a file with a certificate and its key; with it, STARTTLS is offered.
        tls: whether to speak TLS from the start instead.
        login: user name and password; with it, no mail is taken from anybody else.
        extensions: what it offers besides.
        answers: what it says instead of yes, by command (`CONNECT` for the greeting, `.` for the end of a mail);
            an empty answer is none at all: it hangs.
        delay: seconds before each answer.
        mails: what it took.
        commands: all that clients said, the mails apart.
    """

    certificate: Path | None = None
    tls: bool = False
    login: tuple[str, str] | None = None
    extensions: tuple[str, ...] = ("8BITMIME", "SMTPUTF8")
    answers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    mails: list[ReceivedMail] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    port: int = 0

    async def __aenter__(self) -> Self:
        self._connections: list[asyncio.Task[None]] = []
        self._listening = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self.context() if self.tls else None
        )
        self.port = self._listening.sockets[0].getsockname()[1]
        return self

    def context(self) -> SSLContext:
        assert self.certificate is not None
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        await asyncio.wait_for(asyncio.gather(*self._connections), 5)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.create_task(_Connection(self, reader, writer).run()))


class _Connection:
    def __init__(self, server: SMTPServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.is_encrypted, self.is_signed_in = server.tls, False
        self.sender, self.recipients = "", list[str]()

    async def run(self) -> None:
        with suppress(ConnectionError, SSLError):
            self.say(self.server.answers.get("CONNECT", "220 ready"))
            while line := (await self.reader.readline()).decode(errors="replace").strip():
                self.server.commands.append(line)
                await asyncio.sleep(self.server.delay)
                await self.obey(line)
        self.writer.close()
        with suppress(ConnectionError, SSLError):
            await self.writer.wait_closed()

    def say(self, answer: str) -> None:
        if answer:
            self.writer.write(f"{answer}\r\n".encode())

    async def obey(self, line: str) -> None:
        verb = line.split()[0].upper()
        if verb in self.server.answers:
            self.say(self.server.answers[verb])
        elif verb == "EHLO":
            self.say("\r\n".join([*(f"250-{name}" for name in self.offers()), "250 HELP"]))
        elif verb == "STARTTLS":
            await self.encrypt()
        elif verb == "AUTH":
            self.say(self.sign_in(line))
        elif verb == "DATA":
            await self.take()
        else:
            self.say(self.envelope(verb, line))

    def offers(self) -> list[str]:
        starttls = ["STARTTLS"] if self.server.certificate and not self.is_encrypted else []
        return ["test", *self.server.extensions, *starttls, *(["AUTH PLAIN"] if self.server.login else [])]

    async def encrypt(self) -> None:
        self.say("220 go ahead")
        await self.writer.start_tls(self.server.context())
        self.is_encrypted = True

    def sign_in(self, line: str) -> str:
        given = b64decode(line.split()[2]).decode().split("\0")[1:]
        self.is_signed_in = tuple(given) == self.server.login
        return "235 welcome" if self.is_signed_in else f"535 5.7.8 refused: {line} {given}"

    def envelope(self, verb: str, line: str) -> str:
        address = line.partition("<")[2].partition(">")[0]
        if verb == "MAIL":
            if self.server.login and not self.is_signed_in:
                return "530 sign in"
            self.sender, self.recipients = address, []
        elif verb == "RCPT":
            self.recipients.append(address)
        return "221 bye" if verb == "QUIT" else "250 fine"

    async def take(self) -> None:
        self.say("354 go on")
        lines = []
        while (line := await self.reader.readline()) not in {b".\r\n", b""}:
            lines.append(line.removeprefix(b".").replace(b"\r\n", b"\n"))
        answer = self.server.answers.get(".", "250 taken")
        if answer.startswith("250"):
            message = BytesParser(EmailMessage, policy=policy.SMTPUTF8).parsebytes(b"".join(lines))
            self.server.mails.append(ReceivedMail(self.sender, self.recipients, message))
        self.say(answer)


def self_signed_certificate(folder: Path) -> Path:
    """A file with a certificate for 127.0.0.1 and its key; with `SSL_CERT_FILE` naming it, it is trusted."""
    file = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    for extension in ("subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"):
        command += ["-addext", extension]
    subprocess.run([*command, "-keyout", file, "-out", folder / "public.pem"], check=True, capture_output=True)
    with file.open("a") as both:
        both.write((folder / "public.pem").read_text())
    return file
