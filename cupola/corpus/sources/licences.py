"""A short licence note for each package: what its own metadata say, and where the whole text is.

The note is a pointer, not a legal opinion: a package may hold parts under other terms, and its full notice
stays in the archive in the cache.
"""

import email.parser
import json
import re
from pathlib import Path

UNKNOWN = "not stated"
_KNOWN = (
    ("public domain", r"public domain"),
    ("CC0-1.0", r"\bCC0\b|Creative Commons Zero"),
    ("CC-BY-SA", r"CC[- ]BY[- ]SA|Attribution-Share ?Alike"),
    ("GFDL", r"GNU Free Documentation Licen[sc]e|\bGFDL\b"),
    ("Apache-2.0", r"Apache(?: Software)? Licen[sc]e"),
    ("Artistic", r"Artistic Licen[sc]e"),
    ("MIT", r"Permission is hereby granted, free of charge|\bMIT Licen[sc]e"),
    ("BSD", r"Redistribution and use in source and binary forms|\bBSD\b"),
    ("LGPL", r"GNU (?:Lesser|Library) General Public"),
    ("GPL", r"GNU General Public Licen[sc]e|\bGPL\b"),
)


def deb_note(root: Path, package: str) -> str:
    """From `usr/share/doc/<package>/copyright` (machine-readable or not)."""
    path = root / "usr/share/doc" / package / "copyright"
    if not path.is_file():
        return f"{UNKNOWN} (Debian package {package})"
    text = path.read_text(encoding="utf-8", errors="replace")
    where = f"(see usr/share/doc/{package}/copyright)"
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r"^Files:\s*(?:\*|\.)\s*$", paragraph, re.M):
            found = re.search(r"^Licen[sc]e:\s*(\S.*)$", paragraph, re.M)
            if found:
                return f"{found.group(1).strip()} {where}"
    names = [name for name, pattern in _KNOWN if re.search(pattern, text, re.I)]
    return f"{', '.join(names[:3]) or UNKNOWN} {where}"


def npm_note(root: Path, package: str) -> str:
    """From the `license` of package.json."""
    try:
        value = json.loads((root / "package.json").read_text(encoding="utf-8")).get("license")
    except (OSError, ValueError, AttributeError):
        value = None
    if isinstance(value, dict):
        value = value.get("type")
    return f"{value or UNKNOWN} (npm {package})"


def python_note(metadata: str, package: str) -> str:
    """From core metadata (METADATA or PKG-INFO): License-Expression, a short License, or classifiers."""
    fields = email.parser.HeaderParser().parsestr(metadata)
    value = fields.get("License-Expression") or fields.get("License") or ""
    if not value or len(value) > 60 or "\n" in value or value == "UNKNOWN":
        classified = [
            item.split(" :: ")[-1]
            for item in fields.get_all("Classifier", [])
            if item.startswith("License ::")
        ]
        value = ", ".join(classified) or UNKNOWN
    return f"{value} (PyPI {package})"


def pypi_note(root: Path, package: str) -> str:
    """From the metadata in an unpacked wheel or source archive."""
    for path in [*sorted(root.glob("*.dist-info/METADATA")), *sorted(root.glob("PKG-INFO"))]:
        return python_note(path.read_text(encoding="utf-8", errors="replace"), package)
    return f"{UNKNOWN} (PyPI {package})"
