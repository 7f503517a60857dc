"""The configuration: its sections, classifier recipes and arms, and how it is read and dumped."""
