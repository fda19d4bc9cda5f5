"""Sites, as the web's privacy APIs name who acts: the registrable domain of a host, such as example.com."""

import ipaddress
import re
from functools import lru_cache
from typing import Any

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_LONGEST = 253


class NoSiteError(ValueError):
    """A text that names no site."""


@lru_cache(maxsize=1 << 16)
def site_of(host: str) -> str:
    """Returns the site of a host: one label more than its public suffix, in lower case and in ASCII (IDNA 2003).

    Raises NoSiteError for what is no host, for a public suffix itself, for an address, and for local names. The public
    suffix list is that of the installed `publicsuffixlist`.

    >>> site_of("extra.Example.com")
    'example.com'
    """
    try:
        name = host.encode("idna").decode().lower().removesuffix(".")
    except UnicodeError:
        raise NoSiteError(f"{host!r} is no host") from None
    if len(name) > _LONGEST or not all(_LABEL.fullmatch(label) for label in name.split(".")) or _is_address(name):
        raise NoSiteError(f"{host!r} is no host that has a site")
    if name.rpartition(".")[2] == "localhost":
        raise NoSiteError(f"{host!r} is a name on this machine alone")
    site = _suffixes().privatesuffix(name)
    if site is None:
        raise NoSiteError(f"{host!r} is a public suffix, which nobody owns")
    return str(site)


def _is_address(name: str) -> bool:
    if name.rpartition(".")[2].isdigit():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def _suffixes() -> Any:
    try:
        from publicsuffixlist import PublicSuffixList
    except ImportError as error:
        raise ImportError('attribution needs the public suffix list: pip install "privads[attribution]"') from error
    return PublicSuffixList()
