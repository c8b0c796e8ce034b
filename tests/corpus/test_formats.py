"""Each format's reader: what a reader of the page reads, and none of its furniture."""

import pytest

from cupola.corpus.formats import format_of
from cupola.corpus.formats.html import declared_charset, html_to_text
from cupola.corpus.formats.plain import (
    dictionary_to_text,
    fortunes_to_text,
    info_to_text,
    reads_as_rst,
    rst_to_text,
)
from cupola.corpus.formats.pod import pod_to_text
from cupola.corpus.formats.python import docstrings_to_text
from cupola.corpus.formats.roff import roff_to_text


@pytest.mark.parametrize(
    ("path", "named", "kind"),
    [
        ("a/b.txt.gz", False, "text"),
        ("b.MD", False, "markdown"),
        ("b.htm.zst", False, "html"),
        ("x.jsonl", False, "jsonl"),
        ("x.json", False, None),
        ("x.json", True, "json"),
        ("x.log", False, None),
        ("x.log", True, "text"),
        ("usr/share/man/man3/printf.3.gz", False, "manual"),
        ("usr/share/man/man3/File::Spec.3perl.gz", False, "manual"),
        ("usr/share/man/de/man1/ls.1.gz", False, "manual"),
        ("usr/share/games/fortunes/riddles", False, "fortunes"),
        ("usr/share/games/fortunes/riddles.dat", False, None),
        ("usr/share/info/bash.info.gz", False, "info"),
        ("usr/share/info/elisp.info-12.gz", False, "info"),
        ("usr/share/dictd/foldoc.dict.dz", False, "dictionary"),
        ("picture.png", False, None),
    ],
)
def test_format_of(path: str, named: bool, kind: str | None) -> None:
    assert format_of(path, named) == kind


def test_html_keeps_paragraphs_lists_tables_and_literal_blocks() -> None:
    page = """<html><head><title>No</title><style>p {}</style></head><body>
      <nav>Home</nav><div class="navheader"><a href="x">Prev</a></div>
      <h1><a id="top"/>Water</h1>
      <p>It boils
         at 100 &deg;C.<br>Always &lt;there&gt;.</p>
      <ul><li>one</li>
          <li><p>two <b>bold</b></p></li></ul>
      <pre>a  =  1

  b &amp; c</pre>
      <table><tr><th>name</th><th>size</th></tr>
             <tr><td>oak</td><td>tall</td></tr></table>
      <script>var no;</script><div class="footer">Copyright</div></body></html>"""
    assert html_to_text(page) == (
        "Water\n\nIt boils at 100 °C.\nAlways <there>.\n\n- one\n- two bold\n\n"
        "a  =  1\n\n  b & c\n\nname\tsize\noak\ttall"
    )


def test_html_takes_the_content_and_refuses_pages_of_links() -> None:
    words = "Real words are here. " * 5
    page = f"<body><div>Menu</div><div class='body'><p>{words}</p></div></body>"
    assert html_to_text(page) == words.strip()
    links = "".join(f"<li><a href='{n}'>Entry number {n}</a></li>" for n in range(20))
    assert html_to_text(f"<body><p>All pages</p><ul>{links}</ul></body>") == ""


@pytest.mark.parametrize(
    ("head", "charset"),
    [
        (b'<?xml version="1.0" encoding="ISO-8859-1"?>', "ISO-8859-1"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
        (b"<meta charset='utf-8'>", "utf-8"),
        (b"<p>none", None),
    ],
)
def test_declared_charset(head: bytes, charset: str | None) -> None:
    assert declared_charset(head) == charset


def test_manual_page() -> None:
    page = r""".\" a comment
.TH TOOL 1 2020-01-01 "Project"
.SH NAME
tool \- do \fIuseful\fP things
.SH SYNOPSIS
.B tool
.RB [ \-v ]
.I file
.SH DESCRIPTION
The first line
continues
.BR printf (3)
here\[em]and ends.
.PP
A new paragraph\(aqs text.
.TP
.B \-v
Talk
more.
.IP \(bu 2
A point.
.nf
.EX
int  x;

y();
.EE
.fi
.if t \{\
printed only
.\}
.ie n on a terminal
.el on paper
.TS
tab(;);
l l.
name;size
oak;T{
very
tall
T}
.TE
"""
    assert roff_to_text(page) == (
        "NAME\n\ntool - do useful things\n\nSYNOPSIS\n\ntool [-v] file\n\nDESCRIPTION\n\n"
        "The first line continues printf(3) here—and ends.\n\nA new paragraph's text.\n\n-v\nTalk more.\n\n"
        "- A point.\nint  x;\n\ny();\non a terminal\n\nname\tsize\noak\tvery tall"
    )


@pytest.mark.parametrize("page", [".so man3/other.3\n", ".Dd January 1\n.Dt LS 1\n.Sh NAME\n"])
def test_manual_pages_that_give_nothing(page: str) -> None:
    assert roff_to_text(page) == ""


def test_pod() -> None:
    source = """use strict;

=head1 NAME

tool - see L<printf(3)|https://x> and C<< a->b >>,
B<bold I<both>>, E<lt>this E<233> F<path>X<index>

  verbatim  block

=over 4

=item * point

=item name

Text.

=back

=begin html

<p>no</p>

=end html

=cut

my $code = 1;

=encoding utf8
"""
    assert pod_to_text(source) == (
        "NAME\n\ntool - see printf(3) and a->b, bold both, <this é path\n\n  verbatim  block\n\n- point\n\n"
        "- name\n\nText."
    )


def test_rst() -> None:
    source = """.. _label:

Title
=====

.. module:: thing
   :synopsis: no

See :class:`~package.Thing` and :doc:`the guide </guide>`, ``code``, `link <https://x>`_.

.. note::

    Take care.

.. toctree::
   :maxdepth: 2

   one
   two

Example::

    x = 1

.. code-block:: python

    y = 2

.. a comment
   over lines

The end.
"""
    assert reads_as_rst(source)
    assert not reads_as_rst("Plain words.\n" * 20)
    text = rst_to_text(source)
    lines = [line for line in text.split("\n") if line.strip()]
    assert lines == [
        "Title", "See package.Thing and the guide, code, link.", "Note: ", "    Take care.", "Example:",
        "    x = 1", "    y = 2", "The end.",
    ]  # fmt: skip


def test_info_fortunes_dictionary() -> None:
    info = (
        "\x1f\nFile: a.info,  Node: Top,  Next: One,  Up: (dir)\n\nWords.  *Note Other::.\n\n* Menu:\n\n"
        "* One::   first\n* Two::   second\n\nMore.\n\x1f\nTag Table:\nNode: Top\x7f12\n"
    )
    assert info_to_text(info).split() == ["Words.", "Other.", "More."]
    assert fortunes_to_text("One.\n%\nTwo\nlines.\n%\n") == "One.\n\nTwo\nlines.\n\n"
    dictionary = "00-database-info\n   About.\n00-database-url\n   http://x\noak\n   A tree.\n"
    assert dictionary_to_text(dictionary) == "oak\n   A tree.\n"


def test_docstrings() -> None:
    source = '''"""A module.

    Indented."""

class Thing:
    """A thing that holds."""

    def method(self, x: int = 1, *rest: str) -> None:
        """Do something that takes words."""

    def short(self):
        """Too short."""

    def _private(self):
        """Never shown to anyone at all."""

if True:
    async def free(a):
        """A function inside a condition."""
'''
    assert docstrings_to_text(source) == (
        "A module.\n\nIndented.\n\nclass Thing\nA thing that holds.\n\n"
        "Thing.method(x: int=1, *rest: str)\nDo something that takes words.\n\n"
        "free(a)\nA function inside a condition."
    )
    assert docstrings_to_text("x = 1\n") == ""
    assert docstrings_to_text('"""open\n') == ""
