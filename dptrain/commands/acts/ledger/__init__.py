"""What the ledger's commands do."""
