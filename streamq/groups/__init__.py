"""Consumer groups, decided: who gets which partition, what a commit changes, whose session is over. Pure."""
