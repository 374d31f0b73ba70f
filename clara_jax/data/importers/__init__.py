"""Importers: question answering sets in the form their authors publish them, to our records.

    published files ─importer─▶ Example ─candidates (retrievers)─▶ record.jsonl

An importer is a generator over the files of one data set (`registry`). It checks every field that it uses, says file
and line of the first departure from the published format, and knows nothing of candidates: those are filled in
afterwards, for all data sets alike (`candidates`). The formats stand in the importers' docstrings, field by field.
"""
