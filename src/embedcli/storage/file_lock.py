"""Lock an open file without waiting: flock on POSIX systems, a locked byte on Windows."""

from __future__ import annotations

import errno
import os
import sys

# Far behind the content, because Windows keeps other processes from reading a locked byte.
WINDOWS_LOCK_OFFSET = 1 << 30


def try_lock(descriptor: int, *, is_shared: bool = False) -> None:
    """Lock an open file; closing it unlocks it.

    Args:
        descriptor: The open file.
        is_shared: Whether others may share the lock. Windows has no shared locks of this kind: there nobody can.

    Raises:
        OSError: Another process holds the lock (EAGAIN, EWOULDBLOCK or EACCES), or the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from error
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
