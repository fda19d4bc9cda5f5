"""Keeps passwords out of what a report repeats: the URL of a ledger may hold one."""

import re

from pydantic import JsonValue

_IN_HOST = re.compile(r"(://[^/:@]*):[^@]*@")  # as a database URL is read: up to the @, whatever a password holds
_IN_QUERY = re.compile(r"(?i)([?&][^=&\s]*password[^=&\s]*=)[^&]*")


def without_passwords(value: JsonValue) -> JsonValue:
    """Returns a copy of ``value`` in which stars stand for each password inside a URL.

    >>> without_passwords({"url": "postgresql+psycopg://ads:s/3@host/db?sslpassword=x&sslmode=require"})
    {'url': 'postgresql+psycopg://ads:***@host/db?sslpassword=***&sslmode=require'}
    """
    if isinstance(value, dict):
        return {name: without_passwords(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_passwords(inner) for inner in value]
    if isinstance(value, str):
        return _IN_QUERY.sub(r"\1***", _IN_HOST.sub(r"\1:***@", value))
    return value
