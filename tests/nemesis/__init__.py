"""Real broker processes under a nemesis that kills, pauses, cuts off, slows, fills and damages them, judged by the history checkers."""
