"""Who calls, and what they may do: tokens, roles, key files."""

from __future__ import annotations

from hatoba_scheduler.auth.authenticator import Authenticator, TokenStore
from hatoba_scheduler.auth.files import InsecureFile, ensure_token_files, read_secret, write_secret
from hatoba_scheduler.auth.roles import METHOD_ACCESS, OPEN, Role
from hatoba_scheduler.auth.tokens import mint, token_id

__all__ = [
    "METHOD_ACCESS",
    "OPEN",
    "Authenticator",
    "InsecureFile",
    "Role",
    "TokenStore",
    "ensure_token_files",
    "mint",
    "read_secret",
    "token_id",
    "write_secret",
]
