"""Check of a language model against transformers' own figures."""
