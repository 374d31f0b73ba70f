"""A store and its model inside other tools: LangChain, LlamaIndex, Haystack, and clients of the Model Context Protocol.

Each module imports one of these packages, which is an extra of this one: `clara_jax[langchain]`, `[llamaindex]`,
`[haystack]`, `[mcp]`. `ray` compresses a corpus on a Ray cluster (`clara_jax[ray]`).
"""
