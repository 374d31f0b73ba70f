"""What the public data is made of: each file with its address, its checksum, its licence.

Addresses are those of the authors; files of a Git repository are those of one commit. A checksum that is not known
here is None: it is then recorded when the file is downloaded for the first time.
"""

from __future__ import annotations

import dataclasses

_RAW, _GITHUB = "https://raw.githubusercontent.com", "https://github.com"
_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
_WIKI_SPLIT = f"{_RAW}/google-research-datasets/wiki-split/80f5bddf42d1a68201b7b107ee4b8d86d82e9fde"
_LOST = f"{_RAW}/nelson-liu/lost-in-the-middle/29b8a6d042ce29abccee3db1a73171a107d7e6af"
_FAIRYTALE = f"{_GITHUB}/uci-soe/FairytaleQAData/archive/a24ddc17364666b7c13a425b9970c87368b03417.zip"
_OTT_QA = f"{_GITHUB}/wenhuchen/OTT-QA/archive/b289bcca691db21a5259c3420e6b9819a9be9ba3.zip"


@dataclasses.dataclass(frozen=True)
class Download:
    """A file that is downloaded, or that the user has.

    Attributes:
      file: its name here, by which the user's is found, too.
      url: its address; "" where it must be fetched by hand.
      sha256: its checksum; of an archive that of the listing of its members (`downloads.listing`), because the bytes of
        an archive that is made anew may differ; None: recorded on first use.
      members: of a ZIP archive, a regular expression of the names that are read, without the folder around them all.
      page: where it is described, and downloaded by hand.
    """

    file: str
    url: str
    sha256: str | None = None
    members: str = ""
    page: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the folder.

    Attributes:
      what: one line on it.
      licence: of its texts.
      downloads: what it is made of.
    """

    what: str
    licence: str
    downloads: tuple[Download, ...]


@dataclasses.dataclass(frozen=True)
class Book:
    """A textbook of OpenStax, as CNXML in a Git repository, at a commit at which its licence is CC BY 4.0."""

    name: str
    repository: str
    commit: str

    @property
    def root(self) -> str:
        """Return the address of the repository's files."""
        return f"{_RAW}/openstax/{self.repository}/{self.commit}"


BOOKS = (
    Book("american-government-3e", "osbooks-american-government", "d6f06d8b0b6ad0498f7d9a008332ddcdc31d9d8f"),
    Book("astronomy-2e", "osbooks-astronomy", "361b6726c4e63e79d5262f32fac9a05643c4f160"),
    Book("introduction-philosophy", "osbooks-introduction-philosophy", "4e1c14368fd1aaa48ed833a64b0b7a91ba8dd029"),
    Book("microbiology", "osbooks-microbiology", "20f4890887f815c4c17b424e8c68e43505bdf17b"),
    Book("psychology-2e", "osbooks-psychology", "42e0ef37f6a9abdb6b94bda337e77d71632bf1b9"),
    Book("us-history", "osbooks-us-history", "20233726c1e82d066f78765ad2b2fc51eb16f3d6"),
)

# In the order in which they are made: those of questions first, for passages that repeat held-out ones are left out.
PARTS = {
    "squad": Part(
        "SQuAD 1.1: training records of all stages, held-out ones, an evaluation set",
        "CC BY-SA 4.0",
        (
            Download(
                "train-v1.1.json",
                f"{_SQUAD}/train-v1.1.json",
                "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
            ),
            Download(
                "dev-v1.1.json",
                f"{_SQUAD}/dev-v1.1.json",
                "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
            ),
        ),
    ),
    "nq": Part(
        "Natural Questions with the passages of Lost in the Middle: questions, an evaluation set",
        "CC BY-SA 3.0",
        (
            Download(
                "nq-open-oracle.jsonl.gz",
                f"{_LOST}/qa_data/nq-open-oracle.jsonl.gz",
                "6a7f72b846f663a133ef952244e5a4e43f06bcf190afe34e8fbe687ce0d1653e",
            ),
        ),
    ),
    "boolq": Part(
        "BoolQ, its development set: yes and no",
        "CC BY-SA 3.0",
        (
            Download(
                "boolq-dev.jsonl",
                "https://storage.googleapis.com/boolq/dev.jsonl",
                "ebc29ea3808c5c611672384b3de56e83349fe38fc1fe876fd29b674d81d0a80a",
            ),
        ),
    ),
    "fairytaleqa": Part(
        "FairytaleQA: questions on stories",
        "Apache-2.0",
        (
            Download(
                "FairytaleQAData.zip",
                _FAIRYTALE,
                "96b44b6279f6fefad3669977b415ccd0bd7a40e2fedca8399a67fc95f947aceb",
                r"data-by-train-split/(questions|section-stories)/(train|val|test)/[^/]+\.csv",
            ),
        ),
    ),
    "wikisplit": Part(
        "WikiSplit: sentences and their paraphrases in two",
        "CC BY-SA 4.0",
        (
            Download(
                "tune.tsv",
                f"{_WIKI_SPLIT}/tune.tsv",
                "67118f483438fc9f0ba12e63dc37f0eeff8bbad1873157509ced7e3e46582312",
            ),
            Download(
                "validation.tsv",
                f"{_WIKI_SPLIT}/validation.tsv",
                "63931ff45b7d95d60480bdcd466d69894fc02a0ec975cab8d0955e9b8cceb922",
            ),
            Download(
                "test.tsv",
                f"{_WIKI_SPLIT}/test.tsv",
                "88c3eff253f7ff3fcce9370bb54f750bc35f646c1b6d2a45df2b993c96670f7f",
            ),
        ),
    ),
    "hotpotqa": Part(
        "HotpotQA: an evaluation set",
        "CC BY-SA 4.0",
        (
            Download(
                "hotpot_dev_distractor_v1.json",
                "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
                page="https://hotpotqa.github.io",
            ),
        ),
    ),
    "2wiki": Part(
        "2WikiMultiHopQA: an evaluation set",
        "Apache-2.0",
        (Download("2wiki-dev.json", "", page="https://github.com/Alab-NII/2wikimultihop (dev.json of its ZIP file)"),),
    ),
    "musique": Part(
        "MuSiQue: an evaluation set",
        "CC BY 4.0",
        (Download("musique_ans_v1.0_dev.jsonl", "", page="https://github.com/StonyBrookNLP/musique"),),
    ),
    "wiki_leads": Part(
        "beginnings of Wikipedia's articles, of OTT-QA",
        "CC BY-SA 3.0",
        (
            Download(
                "OTT-QA.zip",
                _OTT_QA,
                "ac82b6a4b0f01db64b48dafdc8a220dba3288ba71784c9396469e297ff828e86",
                r"data/traindev_request_tok/[^/]+\.json",
            ),
        ),
    ),
    "openstax": Part(
        f"paragraphs of {len(BOOKS)} textbooks of OpenStax",
        "CC BY 4.0",
        tuple(
            Download(f"{book.name}.collection.xml", f"{book.root}/collections/{book.name}.collection.xml")
            for book in BOOKS
        ),
    ),
}
