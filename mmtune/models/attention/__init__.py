"""Attention of packed documents and of trees of prefixes."""
