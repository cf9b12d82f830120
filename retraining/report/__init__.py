"""One cycle as one page of HTML that explains itself: facts, charts, page, and where it is kept."""
