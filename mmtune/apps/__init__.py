"""Applications that use generation: the chat page."""
