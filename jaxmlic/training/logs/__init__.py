"""What a run writes about itself while it trains: its numbers, where its time went, a trace."""
