r"""Manual pages (roff with the `man` macros) to text, without groff or mandoc, so the same on every machine.

Guarantees: filled text becomes one line a paragraph, literal blocks keep their lines, fonts and comments are
gone, and a page that only sources another one gives nothing. Conditions are taken as for a plain terminal
(`n` true, all else false). Pages written with the BSD `mdoc` macros give nothing: that is another language.
Costs about 0.3 s a megabyte. Trade-off: indentation of nested lists, and tables' ruling, are lost.
"""

import re

_SYMBOLS = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "bu": "•", "em": "—", "en": "–",
    "hy": "-", "co": "©", "rg": "®", "tm": "™", "mi": "-", "pl": "+", "mu": "×", "->": "→", "<-": "←",
    "<=": "≤", ">=": "≥", "!=": "≠", "==": "≡", "+-": "±", "de": "°", "sq": "□", "rs": "\\", "ti": "~",
    "ha": "^", "ga": "`", "at": "@", "sh": "#", "Do": "$", "Po": "£", "Eu": "€", "12": "½", "14": "¼",
    "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü", "'e": "é", "`e": "è", "'a": "á", "'o": "ó", "'i": "í",
    "~n": "ñ", ",c": "ç", "/o": "ø", "oa": "å", "ae": "æ", "sc": "§", "fm": "′", "lB": "[", "rB": "]",
    "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "ba": "|", "br": "|", "or": "|", "ul": "_", "Fo": "«",
    "Fc": "»", "if": "∞", "*m": "μ", "*p": "π", "sr": "√",
}  # fmt: skip
_COMMENT = re.compile(r'\\["#].*$')
_ESCAPE = re.compile(
    r"\\(?:f(?:\[[^\]]*\]|\(..|.)"  # font
    r"|s[+-]?(?:\[[^\]]*\]|\(..|'[^']*'|\d)"  # size
    r"|[hvwlLDbNSHRXZ]'[^']*'"  # motion, drawing
    r"|[mMFgnYV](?:\[[^\]]*\]|\(..|[+-]?.)"  # colour, registers
    r"|\*(?P<string>\[[^\]]*\]|\(..|.)"
    r"|\((?P<two>..)|\[(?P<long>[^\]]*)\]|C'(?P<char>[^']*)'"
    r"|(?P<one>.))"
)
_ONE = {
    "-": "-",
    "e": "\\",
    "\\": "\\",
    " ": " ",
    "~": " ",
    "0": " ",
    "t": "\t",
    "'": "'",
    "`": "`",
    ".": ".",
    '"': "",
}
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)(?:"|$)|(\S(?:\\ |[^\s])*)')
_ALTERNATING = {"BR", "RB", "IR", "RI", "BI", "IB"}
_FONTS = {"B", "I", "SM", "SB", "R", "CW"}
_PARAGRAPHS = {"PP", "P", "LP", "HP", "sp", "Sp", "SP", "bp"}


def roff_to_text(source: str) -> str:
    """The text of a manual page; "" for an alias (`.so`) and for `mdoc` pages."""
    source = source.replace("\r\n", "\n")
    if re.search(r"^\.\s*Dd\b", source, re.M) or re.match(r"\s*\.so\s", source):
        return ""
    return _Page(source.replace("\\\n", "").split("\n")).text()


class _Page:
    """One pass over the lines: macros change the state, text is gathered into paragraphs."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = iter(lines)
        self.strings: dict[str, str] = {}
        self.blocks: list[str] = []
        self.words: list[str] = []
        self.literal: list[str] | None = None
        self.tag_next = False
        self.condition = False
        self.link = ""

    def text(self) -> str:
        for line in self.lines:
            self._line(line)
        self._break()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.blocks)).strip("\n")

    def _line(self, line: str) -> None:
        line = _COMMENT.sub("", line)
        if line[:1] in (".", "'"):
            found = re.match(r"[.'][ \t]*(\S*)[ \t]*(.*)", line)
            if found:
                self._macro(found.group(1), found.group(2))
        else:
            self._add(self._unescape(line))

    def _add(self, text: str) -> None:
        if self.literal is not None:
            self.literal.append(text.rstrip())
        elif not text.strip():
            self._paragraph()
        else:
            self.words.append(text.strip() if not self.words else text.rstrip())
            if self.tag_next:
                self.tag_next = False
                self._break()

    def _break(self) -> None:
        """End the line being filled, or flush the literal block."""
        if self.literal:
            self.blocks.extend(self.literal)
            self.literal = []
        if self.words:
            self.blocks.append(" ".join(" ".join(self.words).split()))
            self.words = []

    def _paragraph(self) -> None:
        self.tag_next = False
        if self.literal is not None:
            self.literal.append("")
        else:
            self._break()
            self.blocks.append("")

    def _macro(self, name: str, rest: str) -> None:
        if name in _PARAGRAPHS:
            self._paragraph()
        elif name in ("SH", "SS"):
            self.literal, literal = None, self.literal
            self.blocks.extend(literal or [])
            self._paragraph()
            title = " ".join(self._arguments(rest)) or self._unescape(next(self.lines, ""))
            self.blocks += [title, ""]
        elif name in _ALTERNATING:
            self._add("".join(self._arguments(rest)))
        elif name in _FONTS:
            if rest:
                self._add(" ".join(self._arguments(rest)))
        elif name in ("TP", "TQ"):
            if name == "TP":
                self._paragraph()
            else:
                self._break()
            self.tag_next = True
        elif name == "IP":
            self._paragraph()
            arguments = self._arguments(rest)
            if arguments and arguments[0].strip():
                tag = arguments[0].strip()
                if len(tag) <= 3:
                    self.words.append("-" if tag in ("•", "*", "o", "-", "–", "—") else tag)
                else:
                    self.blocks.append(tag)
        elif name in ("nf", "EX", "Vb"):
            self._break()
            self.literal = self.literal if self.literal is not None else []
        elif name in ("fi", "EE", "Ve"):
            self._break()
            self.literal = None
        elif name in ("br", "RS", "RE", "in", "ti", "ce"):
            self._break()
        else:
            self._rare_macro(name, rest)

    def _rare_macro(self, name: str, rest: str) -> None:
        if name in ("UR", "MT"):
            self.link = " ".join(self._arguments(rest))
            self.before_link = len(self.words)
        elif name in ("UE", "ME"):
            named = len(self.words) > self.before_link if self.link else True
            self._add(
                " ".join(self._arguments(rest)) if named else self.link + "".join(self._arguments(rest))
            )
            self.link = ""
        elif name == "SY":
            self._break()
            self._add(" ".join(self._arguments(rest)))
        elif name == "OP":
            self._add(f"[{' '.join(self._arguments(rest))}]")
        elif name == "TS":
            self._table()
        elif name in ("de", "de1", "ig", "am", "EQ", "PS"):
            ends = {"EQ": ".EN", "PS": ".PE"}.get(
                name, "." + (rest.split()[-1] if len(rest.split()) > 1 else ".")
            )
            for line in self.lines:
                if line.startswith(ends):
                    break
        elif name in ("ds", "ds1"):
            key, _, value = rest.partition(" ")
            self.strings[key] = value.lstrip().removeprefix('"')
        elif name in ("if", "ie", "el"):
            self._conditional(name, rest)

    def _conditional(self, name: str, rest: str) -> None:
        if name == "el":
            holds, body = not self.condition, rest
        else:
            holds = re.match(r"n(\s|\\\{)", rest) is not None
            body = re.sub(r"^!?(?:[a-z](?=[\s\\])|'[^']*'[^']*'|\([^)]*\)|\S+)\s*", "", rest, count=1)
            if name == "ie":
                self.condition = holds
        if body.lstrip().startswith("\\{"):
            self._braces(holds, body)
        elif holds and body:
            self._line(body)

    def _braces(self, holds: bool, body: str) -> None:
        depth, lines = 0, [body]
        while True:
            depth += lines[-1].count("\\{") - lines[-1].count("\\}")
            following = next(self.lines, None) if depth > 0 else None
            if following is None:
                break
            lines.append(following)
        if holds:
            outside, self.lines = (
                self.lines,
                iter([line.replace("\\{", "").replace("\\}", "") for line in lines]),
            )
            for line in self.lines:
                self._line(line.strip())
            self.lines = outside

    def _table(self) -> None:
        self._break()
        rows: list[str] = []
        separator, inside, in_format = "\t", False, True
        for line in self.lines:
            if line.startswith(".TE"):
                break
            if line.startswith((".T&", ".TH")):
                in_format = line.startswith(".T&")
                continue
            if in_format:
                found = re.search(r"\btab\s*\((.)\)", line)
                separator = found.group(1) if found else separator
                in_format = not line.rstrip().endswith(".")
                continue
            if line.startswith((".", "'")) or line.strip() in ("_", "="):
                found = re.match(r"[.'](?:[BIR]{1,2}|SM)\s+(.*)", line)
                if not found:
                    continue
                line = "".join(self._arguments(found.group(1)))
            cells = self._unescape(line).replace("T{", "").replace(separator, "\t")
            if inside:
                rows[-1] = f"{rows[-1]} {cells.replace('T}', '').strip(' ')}"
            else:
                rows.append(cells.replace("T}", ""))
            inside = line.count("T{") > line.count("T}") or (inside and "T}" not in line)
        self.blocks += ["", *(re.sub(r" *\t *", "\t", row).strip() for row in rows), ""]

    def _arguments(self, rest: str) -> list[str]:
        found = _ARGUMENT.findall(rest)
        return [self._unescape(quoted.replace('""', '"') if quoted else bare) for quoted, bare in found]

    def _unescape(self, text: str) -> str:
        return _ESCAPE.sub(self._escape, text) if "\\" in text else text

    def _escape(self, found: re.Match[str]) -> str:
        if found["string"]:
            return self._unescape(self.strings.get(found["string"].strip("[(]"), ""))
        name = found["two"] or found["long"]
        if name:
            if re.fullmatch(r"u[0-9A-F]{4,6}", name):
                return chr(int(name[1:], 16))
            return _SYMBOLS.get(name, "")
        return found["char"] or _ONE.get(found["one"] or "", "")
