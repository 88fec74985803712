"""Who may use the web door: tokens by name, in a file that this user alone may read."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from hepar import strict_yaml
from hepar.errors import UsageError

FILE = "tokens.yaml"
_FIRST = "local"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,128}")  # 22 of these letters hold 128 bits


class Tokens:
    """The tokens of a server.

    Args:
        by_name: token by the name of whom it is given to.
    """

    def __init__(self, by_name: Mapping[str, str]) -> None:
        self.first = next(iter(by_name.values()))
        self._names = {name: _digest(token) for name, token in by_name.items()}

    def who(self, token: str) -> str | None:
        """Whose token this is; None for nobody's. It takes as long whichever it is."""
        shown, found = _digest(token), None
        for name, digest in self._names.items():
            if hmac.compare_digest(shown, digest):
                found = name
        return found


def read_tokens(folder: Path) -> Tokens:
    """The tokens in a server's folder; one is made where there is no file of them.

    Raises:
        UsageError: `E_SERVE_TOKENS`, the file cannot be used, or others may read it; `E_YAML`.
    """
    path = folder / FILE
    if not path.exists():
        line = f"{_FIRST}: {secrets.token_urlsafe(32)}\n"
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
            stream.write(line)
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise ValueError("others than its owner may read it")
        return Tokens(_checked(strict_yaml.read(path)))
    except ValueError as error:
        raise UsageError(
            "E_SERVE_TOKENS",
            "serve",
            f"{FILE}: {error}.",
            "Give it lines of NAME: TOKEN and chmod 600; without the file, a token is made.",
        ) from None


def _checked(tree: Mapping[str, object]) -> dict[str, str]:
    """Names and tokens; no message holds a token."""
    if not tree:
        raise ValueError("it holds no token")
    tokens: dict[str, str] = {}
    for name, token in tree.items():
        if not _NAME.fullmatch(name):
            raise ValueError("a name is of up to 32 letters, digits, _ and -")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError(f"the token of {name} is not of 22 to 128 letters, digits, _ and -")
        if token in tokens.values():
            raise ValueError(f"the token of {name} is another one's too")
        tokens[name] = token
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
