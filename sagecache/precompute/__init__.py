"""Phase one: everything frozen runs once over a split, and what it says is kept."""
