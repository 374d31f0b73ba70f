"""From documents to a corpus of chunks: folders of text, Markdown, HTML, PDF, Office files, books, tables and JSONL.

    files ─readers─▶ CorpusDocument ─chunks (sentences, counting)─▶ DocumentChunk ─duplicates─▶ corpus.jsonl (build)

Every chunk knows where it comes from: ``document.text[chunk.start:chunk.end]`` is its text, after the title line.
"""
