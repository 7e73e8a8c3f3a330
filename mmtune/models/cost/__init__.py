"""Operations and memory of a training step, counted without weights."""
