"""The user and password of a server, compared in constant time."""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Self

from vidcm.errors import UsageError


@dataclass(frozen=True)
class Credentials:
    """A user and a password.

    Attributes:
        user: Name for HTTP's Basic scheme.
        password: For the Basic scheme, or alone as a bearer token, which is where OpenAI's client
            puts its `api_key`.
    """

    user: str = field(repr=False)
    password: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The credentials in "USER:PASSWORD". Raises UsageError, without showing them."""
        user, colon, password = text.strip().partition(":")
        if not (user and colon and password):
            raise UsageError("credentials are no USER:PASSWORD; give both, with a colon between")
        return cls(user, password)

    def admit(self, authorization: str) -> bool:
        """Whether the Authorization header of a request has these credentials."""
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return _equal(value.strip(), self.password)
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return False
        return _equal(given, f"{self.user}:{self.password}")


def _equal(given: str, wanted: str) -> bool:
    """Equality in a time that depends on neither text."""
    one, two = (
        hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (given, wanted)
    )
    return hmac.compare_digest(one, two)
