"""The keeper: parent of all that runs for one data directory.

It is a small single-threaded process of the standard library only. Import nothing here: the
keeper's own start and memory are those of its imports, and `client` brings asyncio.
"""

from __future__ import annotations
