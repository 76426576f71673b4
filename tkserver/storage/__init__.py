"""Everything that speaks SQL. Driver exceptions end here."""
