"""Worker processes end when the process that started them does, be it killed: else they would wait for it for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any


def end_with_parent(*_: Any) -> None:
    """To be called first in a worker, as `initializer` of a pool or `worker_init_fn` of a DataLoader."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, and the worker ends with it
    threading.Thread(target=wait, daemon=True).start()
