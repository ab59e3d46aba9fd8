"""Somebody else's server, which `--url` names: what to ask it, and whether it answers that at all.

It is looked at before anything of ours starts: a word that is wrong costs nobody a minute.
"""

from collections.abc import Sequence
from typing import Final

import httpx2

from bench.load import Asked

SECONDS: Final = 10.0  # that an answer may take, as with wrk
HINTS: Final = {
    401: "Sign in with --header.",
    429: "It limits who asks so often: raise its limit first.",
}


def others(url: str, paths: Sequence[str], headers: Sequence[str], method: str) -> dict[str, Asked]:
    """What the server is asked, by the names of the cases.

    Args:
        url: where it is, such as `http://127.0.0.1:9000`.
        paths: below that, with or without a slash first.
        headers: each a `Name: value`.
        method: of all requests.

    Raises: SystemExit for what is no URL or no header.
    """
    base = url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise SystemExit(f"--url {url!r}: it begins with http:// or https://, such as http://127.0.0.1:9000.")
    sent = dict(_header(header) for header in headers)
    addresses = [f"{base}/{path.lstrip('/')}" for path in paths]
    return {address: Asked(address, method.upper(), sent) for address in addresses}


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator or not name.strip():
        raise SystemExit(f"--header {text!r}: a header is `Name: value`.")
    return name.strip(), value.strip()


def look_at(asked: Asked) -> None:
    """Asks once. Raises: SystemExit that says why this cannot be measured."""
    try:
        answer = httpx2.request(
            asked.method,
            asked.url,
            headers=dict(asked.headers),
            timeout=SECONDS,
            verify=False,  # wrk asks anybody, too, and knows of no proxy.
            trust_env=False,
        )
    except (httpx2.RequestError, httpx2.InvalidURL, ValueError) as error:
        raise SystemExit(f"{asked.url}: no answer ({str(error) or type(error).__name__}).") from None
    if answer.is_success:
        return
    if answer.has_redirect_location:
        raise SystemExit(f"{asked.url}: it leads to {answer.headers['Location']}. Give that path.")
    hint = HINTS.get(answer.status_code, "")
    raise SystemExit(f"{asked.url}: {asked.method} is answered with {answer.status_code}. {hint}".rstrip())
