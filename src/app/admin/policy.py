"""What the console's pages may do in a browser, and how the library's templates are made to keep to it."""

import re
from typing import Final

from jinja2.ext import Extension

# Without `unsafe-inline` for scripts: text that gets into a page as markup does not run.
_POLICY: Final = (
    "default-src 'none'; script-src 'nonce-{nonce}'; script-src-attr 'none'; style-src 'self' 'nonce-{nonce}';"
    " style-src-attr 'none'; img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=()"),
]
_INLINE: Final = re.compile(r"<(script|style)\b")
_HANDLER: Final = re.compile(r"""\son(?:click|change)="([^"]*)\"""")
_STYLE: Final = re.compile(r"""\sstyle="([^"{}]*)\"""", re.DOTALL)


def security_headers(nonce: str) -> list[tuple[bytes, bytes]]:
    """Those of every answer of the console."""
    return [(b"content-security-policy", _POLICY.format(nonce=nonce).encode()), *_HEADERS]


class StrictPolicy(Extension):
    """Makes templates fit the policy when they are loaded, never what is put into them.

    Scripts and styles that stand in a template get the answer's nonce. Handlers and styles that stand in attributes
    cannot have one: the first become `data-console-on`, the others `data-console-style`, and console.js does both.
    """

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """A template's source, before it is compiled."""
        source = _INLINE.sub(r'<\1 nonce="{{ request.state.csp_nonce }}"', source)
        source = _HANDLER.sub(r' data-console-on="\1"', source)
        return _STYLE.sub(r' data-console-style="\1"', source)
