"""What can be wrong about an upload."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from app.core.exceptions.http_exceptions import Problem, ServiceUnavailable, TooManyRequests, Unprocessable

log = structlog.stdlib.get_logger("slipway.storage")


class UnsupportedContent(Problem):
    status = 415
    text = "The content of the file is not of a supported type."


class ImageTooLarge(Unprocessable):
    text = "The image has too many pixels."


class UploadAborted(Problem):
    status = 400
    text = "The upload was not completed."


class UploadTooSlow(Problem):
    status = 408
    text = "The upload took too long."


class StorageFull(Problem):
    status = 507
    text = "There is no space left for this file."


class StorageUnavailable(ServiceUnavailable):
    text = "Files cannot be stored at the moment. Try again shortly."


class StorageBusy(ServiceUnavailable):
    text = "Too many files are being uploaded. Try again shortly."


class TooManyUploads(TooManyRequests):
    text = "You are uploading too many files at the same time."


UPLOAD_PROBLEMS = (
    UnsupportedContent,
    ImageTooLarge,
    UploadAborted,
    UploadTooSlow,
    StorageFull,
    StorageUnavailable,
    StorageBusy,
    TooManyUploads,
)
"""The errors of a route that receives a file, for its `responses=`."""


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raises: StorageFull, or StorageUnavailable for any other error of the system, whose number is logged."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull from error
        log.error("storage failed", reason=errno.errorcode.get(error.errno or 0, type(error).__name__))
        raise StorageUnavailable from error
