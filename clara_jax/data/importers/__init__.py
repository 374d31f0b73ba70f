"""Importers: question answering sets, in the formats in which their authors publish them, to records.

    published files ─importer─▶ ImportedExample ─candidates (retrievers)─▶ record.jsonl

An importer is a generator over the files of one data set (`registry`). It checks every field that it uses, reports file
and line of the first departure from the published format, and knows nothing of candidates: those are chosen
afterwards, for all data sets alike (`candidates`). The importers' docstrings document the formats, field by field.
"""
