"""Lightning callbacks: ledger, resume, stopping, progress, metrics."""
