"""Which Redis key a resource has, and which variant of it a request asks for."""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from hashlib import blake2b
from inspect import Parameter, Signature
from string import Formatter
from typing import Annotated, Any, get_args, get_origin

from app.core.exceptions.cache_exceptions import CacheIdentificationInferenceError, InvalidRequestError

LONGEST_VALUE = 200  # characters of a value in a key; a longer one is replaced by its hash
DIGEST_BYTES = 16

# What separates the parts of a key, what a pattern or Redis Cluster reads in its own way, and what no log should see.
_UNSAFE = re.compile(r"[%:*?\[\]\\{}~\x00-\x1f\x7f\ud800-\udfff]")


def encoded(value: object) -> str:
    """A value as it stands in a key: percent-encoded, so that no input can form, or match, another key."""
    text = str(value.value if isinstance(value, Enum) else value)
    if _UNSAFE.search(text):
        text = _UNSAFE.sub(_percent, text)
    if len(text) > LONGEST_VALUE:
        return f"~{blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()}"
    return text


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def resource_key(key_prefix: str, resource_id: object) -> str:
    """The Redis key of a resource: `{prefix}:{id}`."""
    return f"{key_prefix}:{encoded(resource_id)}"


def filled_pattern(pattern: str, values: Mapping[str, object]) -> str:
    """A pattern of keys with values in place of the names in braces. Raises: InvalidRequestError, KeyError."""
    if "*" not in pattern or not re.sub(r"{.*?}", "", pattern.partition("*")[0]):
        raise InvalidRequestError(f"The pattern {pattern!r} must have a `*`, and something fixed before it.")
    return pattern.format_map({name: encoded(value) for name, value in values.items()})


class Template:
    """A text with a handler's parameters in braces, such as `{username}_posts`."""

    def __init__(self, text: str, signature: Signature, option: str) -> None:
        """
        Args:
            text: the template.
            signature: the handler's.
            option: what the template was given as, for the error's text.

        Raises: InvalidRequestError when it is no template, or names what is no parameter.
        """
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(f"{option} must be a text, not {text!r}.")
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise InvalidRequestError(f"{option} {text!r}: {error}.") from None
        self._pieces: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in parsed:
            if name is not None and (name not in signature.parameters or spec or conversion):
                raise InvalidRequestError(
                    f"{option} {text!r} names {{{name}}}, which is no parameter of the handler: it has "
                    f"{', '.join(signature.parameters) or 'none'}."
                )
            self._pieces.append((literal, name))

    def fill(self, arguments: Mapping[str, Any]) -> str:
        """The text with the arguments of a call in it, encoded."""
        return "".join(
            literal if name is None else literal + encoded(arguments[name]) for literal, name in self._pieces
        )


def id_source(
    signature: Signature, name: str | None, kinds: type | tuple[type, ...], constant: object
) -> Callable[[Mapping[str, Any]], object]:
    """Where the id of the resource comes from: a parameter named or inferred by its type, or a constant.

    Raises: CacheIdentificationInferenceError when there is no such parameter, or more than one.
    """
    if constant is not None:
        if name is not None:
            raise InvalidRequestError("resource_id and resource_id_name exclude each other.")
        return lambda _: constant
    if name is None:
        name = _inferred_name(signature, kinds if isinstance(kinds, tuple) else (kinds,))
    elif name not in signature.parameters:
        raise CacheIdentificationInferenceError(
            f"resource_id_name {name!r} is no parameter of the handler: it has {', '.join(signature.parameters)}."
        )
    return lambda arguments: arguments[name]


def _inferred_name(signature: Signature, kinds: tuple[type, ...]) -> str:
    fitting = [name for name, parameter in signature.parameters.items() if _type_of(parameter) in kinds]
    if int in kinds:  # Many a number is no id: a page, a limit.
        named_id = [name for name in fitting if "id" in name.lower().split("_")]
        fitting = named_id or [name for name in fitting if "id" in name.lower()]
    if len(fitting) != 1:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        found = f"{', '.join(fitting)} could be it" if fitting else "no parameter could be it"
        raise CacheIdentificationInferenceError(
            f"The id of the resource, of the type {wanted}, cannot be inferred: {found}. Pass resource_id_name."
        )
    return fitting[0]


def _type_of(parameter: Parameter) -> Any:
    annotation = parameter.annotation
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def variant_of(parts: Iterable[bytes]) -> bytes:
    """A short name for what distinguishes one variant of a resource from the others."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
