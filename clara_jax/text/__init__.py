"""Text: documents, sentences, chunks, words, facts and titles, and how many tokens they are."""
