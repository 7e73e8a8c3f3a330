"""Chat templates: conversations to text and answer spans."""
