"""Make the checkout importable as the collection, wherever pytest is started."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
if str(COLLECTIONS) not in sys.path:
    sys.path.insert(0, str(COLLECTIONS))

# Who starts the tests in the background (nohup, &) has them ignore these, and everything that they start as well: tests that end a
# process by a signal would wait for ever.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)
