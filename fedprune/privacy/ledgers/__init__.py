"""What a client enforces: the durable ledger, its signed receipts and its keys."""
