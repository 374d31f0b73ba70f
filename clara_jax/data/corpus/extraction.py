"""The text of HTML and PDF files.

The packages that extract it may take any time on a malicious file, so these functions are run by `clara_jax.confined`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

from clara_jax.errors import ClaraError


@contextlib.contextmanager
def refusing(kind: str) -> Iterator[None]:
    """Turn any error in the block into a `ClaraError`: a damaged file makes a parser raise nearly anything.

    Args:
      kind: of the file, for the message: "PDF".
    """
    try:
        yield
    except (ClaraError, MemoryError):
        raise
    except Exception as error:
        raise ClaraError(f"is no {kind} that can be read ({type(error).__name__}: {str(error)[:300]})") from error


def html_text(page: str) -> dict[str, Any]:
    """Return the "text" and "title" of a page's main text; "" where there is none.

    Raises:
      ClaraError: no HTML that can be read.
    """
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    # The page is text already: a declared encoding, which may not exist, would mislead the parser.
    page = re.sub(r"(?i)(<meta[^>]{0,200}?)\bcharset\b", r"\1data-charset", page[:10000]) + page[10000:]
    page = re.sub(r"\A\s*<\?xml[^>]*>", "", page)
    if "<html" not in page[:10000].lower():
        page = f"<html><body>{page}</body></html>"  # a fragment is refused otherwise
    with refusing("HTML"):
        found = trafilatura.bare_extraction(
            page,
            with_metadata=True,
            include_comments=False,
            # Nothing but the title is used, and a search for dates takes most of the time. 2.0.0 needs the last one.
            date_extraction_params={"extensive_search": False, "original_date": False, "max_date": None},
        )
    if found is None:
        return {"text": "", "title": ""}
    assert not isinstance(found, dict)  # a dict is given only where ``as_dict`` asks for it
    text = (found.text or "").replace("\r\n", "\n").replace("\r", "\n")
    # Each line is a paragraph, but for the rows of a table and the items of a list.
    return {"text": re.sub(r"\n+(?![-|\n])", "\n\n", text), "title": found.title or ""}


def pdf_text(content: bytes) -> dict[str, Any]:
    """Return the "pages" of a file as texts, and its "title"; "" where there is none.

    Raises:
      ClaraError: no PDF that can be read, or one with a password.
    """
    import pypdf
    import pypdf.errors

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # our messages report what matters
    warnings.simplefilter("ignore")
    with refusing("PDF"):
        try:
            reader = pypdf.PdfReader(io.BytesIO(content))
            # Many files are encrypted with an empty password, only to forbid printing.
            if reader.is_encrypted and not reader.decrypt(""):
                raise ClaraError("is encrypted; remove the password first")
            title = str((reader.metadata or {}).get("/Title") or "")
            return {"pages": [page.extract_text() for page in reader.pages], "title": title}
        except pypdf.errors.DependencyError:
            raise ClaraError("is encrypted with AES; remove the password first, or: pip install cryptography") from None
