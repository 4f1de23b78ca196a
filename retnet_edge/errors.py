"""The ways in which a command ends without having done its work, and the full disk."""

from __future__ import annotations

import errno
import os
import re

DISK_FULL = "disk full (or a file size limit reached)"

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Bad usage or bad input: one sentence that names the value, the place and what is allowed.

    The command line prints it and exits with status 2.
    """


class SessionBusyError(InputError):
    """A session, batch or prompt cache was called while another thread was in it.

    Nothing was done for this call; the other one goes on unharmed.
    """


class CheckFailed(Exception):  # noqa: N818 - a verdict about the bundle, not an error of the tool
    """The work was done and says no (a figure is out of tolerance): exit status 1."""


class ReportedElsewhere(Exception):  # noqa: N818 - as above
    """What ends this process is said by another one, of those that train together."""


def is_disk_full(error: BaseException) -> bool:
    """A full disk or quota, or a file too large.

    True for the operating system's error and for libraries that only repeat its text.
    """
    texts = [os.strerror(code) for code in _DISK_FULL]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
            return True
        if any(text in str(cause) for text in texts):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks, and without ONNX Runtime's prefix of codes."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


# C0 without line feed and tab, DEL, C1; marks that reorder a line; what no UTF-8 can hold.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """`text` with control characters as \\x1b or \\u202e; line feeds and tabs stay."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
