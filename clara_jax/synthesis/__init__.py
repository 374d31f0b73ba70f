"""Training data from documents: questions with answers, and paraphrases, by a language model behind an API."""
