"""Any documents in: folders of text, Markdown, HTML and PDF, and JSONL files, cut into a corpus of chunks.

    files ─readers─▶ Document ─chunks (sentences, counting)─▶ Chunk ─duplicates─▶ corpus.jsonl (build)

Every chunk knows where it comes from: ``document.text[chunk.start:chunk.end]`` is its text, after the title line.
"""
