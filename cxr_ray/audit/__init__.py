"""What a data set, or a model, would be right about for the wrong reasons: checks with a verdict, the number behind it, and what to do."""
