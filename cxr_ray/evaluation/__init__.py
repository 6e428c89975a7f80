"""How good is it, and how sure are we: metrics with intervals by patient, and the report that shows them."""
