"""Label tables as annotators deliver them: reading, cleaning by rules, and an account of every row left out."""
