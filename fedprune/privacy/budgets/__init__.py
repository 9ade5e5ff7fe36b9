"""What was released and what it costs: events, filters, composition, guarantees in words."""
