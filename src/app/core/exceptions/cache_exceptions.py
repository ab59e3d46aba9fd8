"""What can be wrong about the use of the cache. All of it is the programmer's, never the caller's."""


class CacheError(Exception):
    """Base of the cache's errors."""


class CacheIdentificationInferenceError(CacheError):
    """It cannot be told which of a handler's parameters is the id of the resource."""


class InvalidRequestError(CacheError):
    """The decorator is used on a kind of request, or with options, that do not go together."""


class MissingClientError(CacheError):
    """The cache is not open: the app's settings lack `RedisCacheSettings`, or its lifespan does not run."""

    def __init__(self) -> None:
        super().__init__(
            "The cache is not open. Build the app with create_application() and settings that inherit "
            "RedisCacheSettings, and run its lifespan."
        )
