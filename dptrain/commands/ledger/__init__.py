"""`dptrain ledger …`, by who types it: the steward, the controller, whoever looks, and who keeps the keys."""
